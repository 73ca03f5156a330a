// 16 lanes as two AVX registers, without fused multiply-add. Intrinsics only: an
// inline function of the standard library compiled here could be the copy that the linker keeps for older processors.
#include <immintrin.h>
#include <math.h>

#include "sampling.h"

#if defined(_MSC_VER)
#include <intrin.h>
#define TS_LANES __forceinline
#define __builtin_popcount __popcnt
#else
#define TS_LANES inline __attribute__((always_inline))
#endif

namespace {

struct F {
  __m256 a, b;
};
struct I {
  __m256i a, b;
};
typedef F M;  // all bits of a lane set or none

constexpr int kTogether = 2;  // vectors in flight at once
constexpr int kScanStreams = 1;
constexpr int64_t kScanAhead = 1024;  // elements between what is read and what is asked for ahead of time

TS_LANES void prefetch(uintptr_t at) { _mm_prefetch((const char *)at, _MM_HINT_T0); }  // reads nothing: any address will do
TS_LANES F set1(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
TS_LANES F load_f32(const float *at) { return {_mm256_loadu_ps(at), _mm256_loadu_ps(at + 8)}; }
TS_LANES __m256 wide_bf16(const uint16_t *at) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)at)), 16));
}
TS_LANES F load_bf16(const uint16_t *at) { return {wide_bf16(at), wide_bf16(at + 8)}; }
TS_LANES F load_f16(const uint16_t *at) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(at + 8)))};
}
TS_LANES void store_f32(float *at, F v) {
  _mm256_storeu_ps(at, v.a);
  _mm256_storeu_ps(at + 8, v.b);
}
TS_LANES void store_integers(uint32_t *at, I v) {
  _mm256_storeu_si256((__m256i *)at, v.a);
  _mm256_storeu_si256((__m256i *)(at + 8), v.b);
}
TS_LANES F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
TS_LANES F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
TS_LANES F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
TS_LANES F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
TS_LANES F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
TS_LANES I zero_integers() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
TS_LANES I add_integers(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
TS_LANES I shift_left_23(I x) { return {_mm256_slli_epi32(x.a, 23), _mm256_slli_epi32(x.b, 23)}; }
TS_LANES I bits_of_floats(F x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
TS_LANES F floats_of_bits(I x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
TS_LANES M no_lane() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
TS_LANES __m256 half_lanes_of(uint32_t bits) {
  const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)bits), each), each));
}
TS_LANES M lanes_of(uint16_t bits) { return {half_lanes_of(bits & 0xffu), half_lanes_of((uint32_t)bits >> 8)}; }
TS_LANES uint32_t bits_of(M m) { return (uint32_t)_mm256_movemask_ps(m.a) | (uint32_t)_mm256_movemask_ps(m.b) << 8; }
TS_LANES M either(M x, M y) { return {_mm256_or_ps(x.a, y.a), _mm256_or_ps(x.b, y.b)}; }
TS_LANES M both(M x, M y) { return {_mm256_and_ps(x.a, y.a), _mm256_and_ps(x.b, y.b)}; }
TS_LANES M but_not(M x, M y) { return {_mm256_andnot_ps(y.a, x.a), _mm256_andnot_ps(y.b, x.b)}; }
TS_LANES M at_least(F x, F y) { return {_mm256_cmp_ps(x.a, y.a, _CMP_GE_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_GE_OQ)}; }
TS_LANES M less(F x, F y) { return {_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)}; }
TS_LANES M unordered_lanes(F x, F y) {
  return {_mm256_cmp_ps(x.a, y.a, _CMP_UNORD_Q), _mm256_cmp_ps(x.b, y.b, _CMP_UNORD_Q)};
}
TS_LANES F where(M m, F yes, F no) { return {_mm256_blendv_ps(no.a, yes.a, m.a), _mm256_blendv_ps(no.b, yes.b, m.b)}; }
TS_LANES F keep(M m, F x) { return {_mm256_and_ps(m.a, x.a), _mm256_and_ps(m.b, x.b)}; }

// 64-bit lanes with a 32-bit word each, for Philox.
#define TS_WORDS 4
typedef __m256i W;
TS_LANES W word(uint64_t v) { return _mm256_set1_epi64x((int64_t)v); }
TS_LANES W words_from(uint32_t first) { return _mm256_add_epi64(word(first), _mm256_setr_epi64x(0, 1, 2, 3)); }
TS_LANES W product(W x, W y) { return _mm256_mul_epu32(x, y); }
TS_LANES W upper(W x) { return _mm256_srli_epi64(x, 32); }
TS_LANES W differ(W x, W y) { return _mm256_xor_si256(x, y); }
// Whether the upper 53 bits of a number with these halves are below bound, a bit a lane.
TS_LANES uint32_t below_bound(W low, W high, uint64_t bound) {
  const W bits = _mm256_blend_epi32(low, _mm256_slli_epi64(high, 32), 0xaa);
  return (uint32_t)_mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpgt_epi64(word(bound), _mm256_srli_epi64(bits, 11))));
}

// Writes the chosen lanes one after the other, and their ids.
TS_LANES void compress(int32_t *ids, float *x, M, uint32_t bits, F v, int32_t first) {
  float values[16];
  store_f32(values, v);
  for (int64_t n = 0; bits; bits &= bits - 1, ++n) {
#if defined(_MSC_VER)
    const int lane = (int)_tzcnt_u32(bits);
#else
    const int lane = __builtin_ctz(bits);
#endif
    ids[n] = first + lane;
    x[n] = values[lane];
  }
}

// The same without ids; there is room for 16 values whatever the mask.
TS_LANES void squeeze(float *x, const M &m, uint32_t bits, const F &v) {
  int32_t unused[16];
  compress(unused, x, m, bits, v, 0);
}

}  // namespace

#include "sampling_lanes.h"
#include "sampling_select.h"
#include "watermark.h"

extern const TsSampling ts_sampling_avx2 = {TS_BY_TYPE(scan), {}, TS_BY_TYPE(collect), mass, split, nullptr, nullptr, nullptr, sample, kth, kth_of_few, kth_of_lanes, weights, weights_below, exps, divide, green, below};
