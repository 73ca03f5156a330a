// 16 lanes as one AVX-512 register, with fused multiply-adds where they give the same bits. Intrinsics only: an
// inline function of the standard library compiled here could be the copy that the linker keeps for older processors.
#include <immintrin.h>
#include <math.h>

#include "sampling.h"

#define TS_LANES inline __attribute__((always_inline))

namespace {

typedef __m512 F;
typedef __m512i I;
typedef __mmask16 M;

constexpr int kTogether = 8;  // vectors in flight at once
constexpr int kScanStreams = 4;  // parts of a row read side by side
constexpr int64_t kScanAhead = 1024;  // elements between what is read and what is asked for ahead of time

TS_LANES void prefetch(uintptr_t at) { _mm_prefetch((const char *)at, _MM_HINT_T0); }  // reads nothing: any address will do
TS_LANES F set1(float v) { return _mm512_set1_ps(v); }
TS_LANES F load_f32(const float *at) { return _mm512_loadu_ps(at); }
TS_LANES F load_bf16(const uint16_t *at) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)at)), 16));
}
TS_LANES F load_f16(const uint16_t *at) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)at)); }
TS_LANES void store_f32(float *at, F v) { _mm512_storeu_ps(at, v); }
TS_LANES void store_integers(uint32_t *at, I v) { _mm512_storeu_si512(at, v); }
TS_LANES F add(F a, F b) { return _mm512_add_ps(a, b); }
TS_LANES F sub(F a, F b) { return _mm512_sub_ps(a, b); }
TS_LANES F mul(F a, F b) { return _mm512_mul_ps(a, b); }
TS_LANES F div(F a, F b) { return _mm512_div_ps(a, b); }
TS_LANES F max(F a, F b) { return _mm512_max_ps(a, b); }
TS_LANES I zero_integers() { return _mm512_setzero_si512(); }
TS_LANES I add_integers(I a, I b) { return _mm512_add_epi32(a, b); }
#define TS_ADD_WHERE
TS_LANES I add_where(M m, I sum, I x) { return _mm512_mask_add_epi32(sum, m, sum, x); }
TS_LANES I shift_left_23(I a) { return _mm512_slli_epi32(a, 23); }
TS_LANES I bits_of_floats(F a) { return _mm512_castps_si512(a); }
TS_LANES F floats_of_bits(I a) { return _mm512_castsi512_ps(a); }
TS_LANES M no_lane() { return 0; }
TS_LANES M lanes_of(uint16_t bits) { return bits; }
TS_LANES uint32_t bits_of(M m) { return m; }
TS_LANES M either(M a, M b) { return (M)(a | b); }
TS_LANES M both(M a, M b) { return (M)(a & b); }
TS_LANES M but_not(M a, M b) { return (M)(a & ~b); }
TS_LANES M at_least(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
TS_LANES M less(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
TS_LANES M unordered_lanes(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q); }
TS_LANES F where(M m, F yes, F no) { return _mm512_mask_blend_ps(m, no, yes); }
TS_LANES F keep(M m, F a) { return _mm512_maskz_mov_ps(m, a); }

#define TS_WORD_OF
TS_LANES uint64_t word_of(M a, M b, M c, M d) {
  return _cvtmask64_u64(_mm512_kunpackd(_mm512_kunpackw(d, c), _mm512_kunpackw(b, a)));
}

// Writes the chosen lanes one after the other, and their ids.
TS_LANES void compress(int32_t *ids, float *x, M m, uint32_t, F v, int32_t first) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  _mm512_mask_compressstoreu_ps(x, m, v);
  _mm512_mask_compressstoreu_epi32(ids, m, _mm512_add_epi32(lane, _mm512_set1_epi32(first)));
}

// The same without ids; writes 16 values whatever the mask.
TS_LANES void squeeze(float *x, M m, uint32_t, F v) { _mm512_storeu_ps(x, _mm512_maskz_compress_ps(m, v)); }

// x / d to the last bit by multiplications (Markstein 1990): with the reciprocal in two parts the first quotient is one of
// the two floats around the true one, its remainder is exact, and the reciprocal's upper part, which is 1 / d rounded,
// takes it to the right one. Where x is tiny the remainder is not exact, which cannot be seen in x / d - max; of an
// infinity it makes NaN, which exponentials() takes for the floor, as it should.
#define TS_QUOTIENT
struct Quotient {
  F by, high, low;
  TS_LANES Quotient(float divisor, float upper, float lower) : by(set1(divisor)), high(set1(upper)), low(set1(lower)) {}
  TS_LANES F of(F v) const {
    const F q = _mm512_fmadd_ps(v, high, _mm512_mul_ps(v, low));
    return _mm512_fmadd_ps(_mm512_fnmadd_ps(q, by, v), high, q);
  }
};
TS_LANES bool has_quotient(float divisor, float max) {
  return divisor > 0x1p-20f && divisor < 0x1p20f && max < 0x1p100f && max > -0x1p100f;
}

#define TS_POWERS
TS_LANES F less_exact(F a, F b, F c) { return _mm512_fnmadd_ps(b, c, a); }  // b * c is exact: nothing is rounded but the difference
TS_LANES F times_power(F p, F whole, F) { return _mm512_scalef_ps(p, whole); }

#define TS_SUMS_OF
TS_LANES void sums_of(I a, I b, I c, uint32_t *out) {
  const I ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const I cc = _mm512_add_epi32(_mm512_unpacklo_epi32(c, c), _mm512_unpackhi_epi32(c, c));
  const I all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cc), _mm512_unpackhi_epi64(ab, cc));
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
  _mm_storeu_si128((__m128i *)out, _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
}

#define TS_WEIGHTS_WHERE
struct WeightSums {
  I low, high;
};
TS_LANES void add_weights(WeightSums *sums, M m, const uint64_t *w) {
  sums->low = _mm512_mask_add_epi64(sums->low, (__mmask8)m, sums->low, _mm512_loadu_si512(w));
  sums->high = _mm512_mask_add_epi64(sums->high, (__mmask8)(m >> 8), sums->high, _mm512_loadu_si512(w + 8));
}
TS_LANES uint64_t sum_of(const WeightSums &sums) {
  return (uint64_t)_mm512_reduce_add_epi64(_mm512_add_epi64(sums.low, sums.high));
}

// For what is shallow: floats as integers, and lanes of 64 bits.
TS_LANES I integers_of(F a) { return _mm512_cvtps_epi32(a); }
TS_LANES void store_mask(uint16_t *at, M m) { asm("kmovw %1, %0" : "=m"(*at) : "k"(m)); }
TS_LANES M load_mask(const uint16_t *at) {
  M m;
  asm("kmovw %1, %0" : "=k"(m) : "m"(*at));
  return m;
}
TS_LANES M smaller(I a, I b) { return _mm512_cmplt_epu32_mask(a, b); }
TS_LANES I add_longs(I a, I b) { return _mm512_add_epi64(a, b); }
TS_LANES I less_longs(I a, I b) { return _mm512_sub_epi64(a, b); }
TS_LANES I upper_words(I a) { return _mm512_srli_epi64(a, 32); }
TS_LANES I lifted(I a) { return _mm512_slli_epi64(a, 32); }
TS_LANES uint64_t sum_of_longs(I a) { return (uint64_t)_mm512_reduce_add_epi64(a); }

// The maxima of a block of bfloat16, compared 32 at a time as integers of the same order: a number's bits, all but the
// sign turned over where it is negative. *bad gets lanes if any token, marked or not, is a NaN, beyond both infinities.
#define TS_BF16_BLOCK
TS_LANES __m512i order_of(__m512i v) {
  return _mm512_ternarylogic_epi32(v, _mm512_srai_epi16(v, 15), _mm512_set1_epi16(0x7fff), 0x78);  // v ^ (sign & 0x7fff)
}
TS_LANES F block_of_bf16(const uint16_t *x, const uint16_t *marks, M *bad) {
  const __m512i infinity = _mm512_set1_epi16(0x7f80), nothing = _mm512_set1_epi16((short)0x807f);
  __m512i best = nothing, most = nothing, least = infinity;
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g) {
    const __m512i v = order_of(_mm512_loadu_si512(x + 32 * g));
    least = _mm512_min_epi16(least, v);
    most = _mm512_max_epi16(most, v);
    if (marks) {
      const __mmask32 skip = (__mmask32)marks[2 * g] | (__mmask32)marks[2 * g + 1] << 16;
      best = _mm512_max_epi16(best, _mm512_mask_mov_epi16(v, skip, nothing));
    }
  }
  if (_mm512_cmpgt_epi16_mask(most, infinity) | _mm512_cmplt_epi16_mask(least, nothing)) *bad = (M)~0u;
  if (!marks) best = most;
  const __m512i both = order_of(_mm512_castsi256_si512(
      _mm256_max_epi16(_mm512_castsi512_si256(best), _mm512_extracti64x4_epi64(best, 1))));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(both)), 16));
}

// For the estimate, where the last bit does not matter, and for quotients.
TS_LANES F multiply_add(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
struct Doubles {
  __m512d low, high;
};
TS_LANES Doubles zero_doubles() { return {_mm512_setzero_pd(), _mm512_setzero_pd()}; }
TS_LANES void add_to(Doubles *sums, F a) {
  sums->low = _mm512_add_pd(sums->low, _mm512_cvtps_pd(_mm512_castps512_ps256(a)));
  sums->high = _mm512_add_pd(sums->high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1)));
}
TS_LANES double sum_of(const Doubles &sums) { return _mm512_reduce_add_pd(_mm512_add_pd(sums.low, sums.high)); }

// For flat rows. The exponent is floor(n); a power of -inf is 0 even of what is no number.
TS_LANES F multiply_less(F a, F b, F c) { return _mm512_fmsub_ps(a, b, c); }
TS_LANES F multiply_add_where(M m, F a, F b, F c) { return _mm512_mask3_fmadd_ps(a, b, c, m); }
TS_LANES M at_least_where(M m, F a, F b) { return _mm512_mask_cmp_ps_mask(m, a, b, _CMP_GE_OQ); }
TS_LANES F lookup(I index, F low, F high) { return _mm512_permutex2var_ps(low, index, high); }
TS_LANES float half_at(const uint16_t *at) { return _mm_cvtss_f32(_mm_maskz_cvtph_ps(1, _mm_cvtsi32_si128(*at))); }
TS_LANES float most(F a) { return _mm512_reduce_max_ps(a); }
// The lanes of a added up, and those of b; neighbours first, as floats.
TS_LANES void sums_of_pair(F a, F b, double *out) {
  const F pairs = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(pairs)), high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(pairs, 1));
  const __m512d all = _mm512_add_pd(low, high);
  const __m256d half = _mm256_add_pd(_mm512_castpd512_pd256(all), _mm512_extractf64x4_pd(all, 1));
  _mm_storeu_pd(out, _mm_add_pd(_mm256_castpd256_pd128(half), _mm256_extractf128_pd(half, 1)));
}

// 64-bit lanes with a 32-bit word each, for Philox.
#define TS_WORDS 8
typedef __m512i W;
TS_LANES W word(uint64_t v) { return _mm512_set1_epi64((int64_t)v); }
TS_LANES W words_from(uint32_t first) { return _mm512_add_epi64(word(first), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7)); }
TS_LANES W product(W x, W y) { return _mm512_mul_epu32(x, y); }
TS_LANES W upper(W x) { return _mm512_srli_epi64(x, 32); }
TS_LANES W differ(W x, W y) { return _mm512_xor_si512(x, y); }
// Whether the upper 53 bits of a number with these halves are below bound, a bit a lane.
TS_LANES uint32_t below_bound(W low, W high, uint64_t bound) {
  const W bits = _mm512_mask_blend_epi32(0xaaaa, low, _mm512_slli_epi64(high, 32));
  return _mm512_cmplt_epu64_mask(_mm512_srli_epi64(bits, 11), word(bound));
}

}  // namespace

#include "sampling_lanes.h"
#include "sampling_select.h"
#include "watermark.h"
#include "sampling_rough.h"
#include "sampling_shallow.h"
#include "sampling_flat.h"

extern const TsSampling ts_sampling_avx512 = {TS_BY_TYPE(scan), TS_BY_TYPE(scan_rough), TS_BY_TYPE(collect), mass, split, shallow, &flat_loops, rough, sample, kth, kth_of_few, kth_of_lanes, weights, weights_below, exps, divide, green, below};
