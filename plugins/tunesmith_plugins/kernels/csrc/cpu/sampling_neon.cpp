// 16 lanes as four NEON registers (64-bit Arm), without fused multiply-add.
#include <arm_neon.h>
#include <math.h>

#include "numeric.h"
#include "sampling.h"

#define TS_LANES inline __attribute__((always_inline))

namespace {

struct F {
  float32x4_t v[4];
};
struct I {
  uint32x4_t v[4];
};
typedef I M;  // all bits of a lane set or none

constexpr int kTogether = 2;  // vectors in flight at once
constexpr int kScanStreams = 1;
constexpr int64_t kScanAhead = 1024;  // elements between what is read and what is asked for ahead of time

#define TS_EACH(Type, value)                     \
  Type result;                                   \
  for (int j = 0; j < 4; ++j) result.v[j] = value; \
  return result

TS_LANES void prefetch(uintptr_t at) { __builtin_prefetch((const void *)at); }  // reads nothing: any address will do
TS_LANES F set1(float v) { TS_EACH(F, vdupq_n_f32(v)); }
TS_LANES F load_f32(const float *at) { TS_EACH(F, vld1q_f32(at + 4 * j)); }
TS_LANES F load_bf16(const uint16_t *at) { TS_EACH(F, vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(at + 4 * j), 16))); }
TS_LANES F load_f16(const uint16_t *at) { TS_EACH(F, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(at + 4 * j)))); }
TS_LANES void store_f32(float *at, const F &x) {
  for (int j = 0; j < 4; ++j) vst1q_f32(at + 4 * j, x.v[j]);
}
TS_LANES void store_integers(uint32_t *at, const I &x) {
  for (int j = 0; j < 4; ++j) vst1q_u32(at + 4 * j, x.v[j]);
}
TS_LANES F add(const F &a, const F &b) { TS_EACH(F, vaddq_f32(a.v[j], b.v[j])); }
TS_LANES F sub(const F &a, const F &b) { TS_EACH(F, vsubq_f32(a.v[j], b.v[j])); }
TS_LANES F mul(const F &a, const F &b) { TS_EACH(F, vmulq_f32(a.v[j], b.v[j])); }
TS_LANES F div(const F &a, const F &b) { TS_EACH(F, vdivq_f32(a.v[j], b.v[j])); }
TS_LANES F max(const F &a, const F &b) { TS_EACH(F, vmaxq_f32(a.v[j], b.v[j])); }
TS_LANES I zero_integers() { TS_EACH(I, vdupq_n_u32(0)); }
TS_LANES I add_integers(const I &a, const I &b) { TS_EACH(I, vaddq_u32(a.v[j], b.v[j])); }
TS_LANES I shift_left_23(const I &a) { TS_EACH(I, vshlq_n_u32(a.v[j], 23)); }
TS_LANES I bits_of_floats(const F &a) { TS_EACH(I, vreinterpretq_u32_f32(a.v[j])); }
TS_LANES F floats_of_bits(const I &a) { TS_EACH(F, vreinterpretq_f32_u32(a.v[j])); }
TS_LANES M no_lane() { return zero_integers(); }
TS_LANES M lanes_of(uint16_t bits) {
  const uint32_t each[4] = {1, 2, 4, 8};
  TS_EACH(M, vtstq_u32(vdupq_n_u32((uint32_t)bits >> (4 * j)), vld1q_u32(each)));
}
TS_LANES uint32_t bits_of(const M &m) {
  const uint32_t each[4] = {1, 2, 4, 8};
  uint32_t bits = 0;
  for (int j = 0; j < 4; ++j) bits |= vaddvq_u32(vandq_u32(m.v[j], vld1q_u32(each))) << (4 * j);
  return bits;
}
TS_LANES M either(const M &a, const M &b) { TS_EACH(M, vorrq_u32(a.v[j], b.v[j])); }
TS_LANES M both(const M &a, const M &b) { TS_EACH(M, vandq_u32(a.v[j], b.v[j])); }
TS_LANES M but_not(const M &a, const M &b) { TS_EACH(M, vbicq_u32(a.v[j], b.v[j])); }
TS_LANES M at_least(const F &a, const F &b) { TS_EACH(M, vcgeq_f32(a.v[j], b.v[j])); }
TS_LANES M less(const F &a, const F &b) { TS_EACH(M, vcltq_f32(a.v[j], b.v[j])); }
TS_LANES M unordered_lanes(const F &a, const F &b) {
  TS_EACH(M, vornq_u32(vmvnq_u32(vceqq_f32(a.v[j], a.v[j])), vceqq_f32(b.v[j], b.v[j])));
}
TS_LANES F where(const M &m, const F &yes, const F &no) { TS_EACH(F, vbslq_f32(m.v[j], yes.v[j], no.v[j])); }
TS_LANES F keep(const M &m, const F &a) {
  TS_EACH(F, vreinterpretq_f32_u32(vandq_u32(m.v[j], vreinterpretq_u32_f32(a.v[j]))));
}

// Writes the chosen lanes one after the other, and their ids.
TS_LANES void compress(int32_t *ids, float *x, const M &, uint32_t bits, const F &v, int32_t first) {
  float values[kLanes];
  store_f32(values, v);
  for (int64_t n = 0; bits; bits &= bits - 1, ++n) {
    const int lane = __builtin_ctz(bits);
    ids[n] = first + lane;
    x[n] = values[lane];
  }
}

// The same without ids; there is room for 16 values whatever the mask.
TS_LANES void squeeze(float *x, const M &m, uint32_t bits, const F &v) {
  int32_t unused[kLanes];
  compress(unused, x, m, bits, v, 0);
}

}  // namespace

#include "sampling_lanes.h"
#include "sampling_select.h"
#include "watermark.h"

extern const TsSampling ts_sampling_neon = {TS_BY_TYPE(scan), {}, TS_BY_TYPE(collect), mass, split, nullptr, nullptr, nullptr, sample, kth, kth_of_few, kth_of_lanes, weights, weights_below, exps, divide, green, below};
