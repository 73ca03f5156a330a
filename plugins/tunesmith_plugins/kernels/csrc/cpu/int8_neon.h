// The int8 loops on 64-bit Arm, 4 lanes at a time. A unit that includes this says before what a Sum is: four channels'
// sums of products of signed bytes, and how many vectors of channels (kVectors) are added up at once.
//
// Rows are kept as signed bytes: q - 128, and in 12 bits the upper part less 32. What that takes away from a sum is
// put back where the zero point is taken out, so it costs nothing.
#pragma once

#include <arm_neon.h>
#include <string.h>

#include "int8_plain.h"

#define TS_INLINE inline __attribute__((always_inline))

namespace {

typedef float32x4_t Floats;
constexpr int kLanes = 4, kTileChannels = 4 * kVectors;
constexpr uint8_t kFlip = 0x80;
const int32_t kNoSums[kPanel] = {};

TS_INLINE Floats all(float x) { return vdupq_n_f32(x); }
TS_INLINE Floats floats(const float *at) { return vld1q_f32(at); }
TS_INLINE void put(float *at, Floats x) { vst1q_f32(at, x); }
TS_INLINE Floats plus(Floats a, Floats b) { return vaddq_f32(a, b); }
TS_INLINE Floats minus(Floats a, Floats b) { return vsubq_f32(a, b); }
TS_INLINE Floats times(Floats a, Floats b) { return vmulq_f32(a, b); }
TS_INLINE Floats over(Floats a, Floats b) { return vdivq_f32(a, b); }
TS_INLINE Floats negated(Floats x) { return vnegq_f32(x); }
TS_INLINE Floats magnitude(Floats x) { return vabsq_f32(x); }
TS_INLINE Floats nearest(Floats x) { return vrndnq_f32(x); }
TS_INLINE Floats clamped(Floats x, float limit) { return vminq_f32(vmaxq_f32(x, all(-limit)), all(limit)); }
TS_INLINE Floats where_negative(Floats x, Floats yes, Floats no) { return vbslq_f32(vcltq_f32(x, all(0)), yes, no); }
TS_INLINE Floats power_of_two(Floats n) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23));
}

TS_INLINE Floats load(const void *x, int64_t i, int32_t dtype) {
  if (dtype == TS_F32) return vld1q_f32((const float *)x + i);
  return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16((const uint16_t *)x + i), 16));
}

TS_INLINE void store(void *out, int64_t at, int32_t dtype, Floats y) {
  if (dtype == TS_F32) return put((float *)out + at, y);
  const uint32x4_t bits = vreinterpretq_u32_f32(y), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t half = vshrq_n_u32(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd), 16);
  vst1_u16((uint16_t *)out + at, vmovn_u32(vbslq_u32(vceqq_f32(y, y), half, vdupq_n_u32(0x7fc0))));
}

int row_range(const void *x, int64_t k, int32_t dtype, float *lowest, float *highest) {
  const uint32x4_t exponent = vdupq_n_u32(0x7f800000u);
  float32x4_t low = vdupq_n_f32(*lowest), high = vdupq_n_f32(*highest);
  uint32x4_t bad = vdupq_n_u32(0);
  int64_t i = 0;
  for (; i + 4 <= k; i += 4) {
    const float32x4_t v = load(x, i, dtype);
    bad = vorrq_u32(bad, vceqq_u32(vandq_u32(vreinterpretq_u32_f32(v), exponent), exponent));
    low = vminq_f32(low, v);
    high = vmaxq_f32(high, v);
  }
  float least = vminvq_f32(low), most = vmaxvq_f32(high);
  const int finite = plain_row_range((const char *)x + i * (dtype == TS_F32 ? 4 : 2), k - i, dtype, &least, &most);
  *lowest = least;
  *highest = most;
  return finite & (vmaxvq_u32(bad) == 0);
}

TS_INLINE int32x4_t steps_of(const void *x, int64_t i, int32_t dtype, float inverse) {
  const float32x4_t limit = vdupq_n_f32(kStaticLimit), steps = vmulq_n_f32(load(x, i, dtype), inverse);
  return vcvtnq_s32_f32(vminq_f32(vmaxq_f32(steps, vnegq_f32(limit)), limit));
}

void quantize(const void *x, int64_t k, int32_t dtype, float inverse, int32_t zero_point, uint8_t *q, int64_t stride) {
  const int32x4_t zero = vdupq_n_s32(zero_point);
  for (int64_t i = 0; i < padded(k); i += 8) {
    uint8_t *at = q + i / kPanel * stride + i % kPanel;
    if (i + 8 <= k) {
      const int16x4_t first = vqmovn_s32(vaddq_s32(steps_of(x, i, dtype, inverse), zero));
      const int16x4_t second = vqmovn_s32(vaddq_s32(steps_of(x, i + 4, dtype, inverse), zero));
      vst1_u8(at, veor_u8(vqmovun_s16(vcombine_s16(first, second)), vdup_n_u8(kFlip)));
    } else {
      for (int64_t j = i; j < i + 8; ++j)
        at[j - i] = j < k ? ts_quantize_clamped(ts_load(x, j, dtype), inverse, zero_point) ^ kFlip : 0;
    }
  }
}

TS_INLINE int32x4_t steps_of_12(const void *x, int64_t i, int32_t dtype, float inverse) {
  const int32x4_t most = vdupq_n_s32(kLargest12), steps = vcvtnq_s32_f32(vmulq_n_f32(load(x, i, dtype), inverse));
  return vaddq_s32(vminq_s32(vmaxq_s32(steps, vnegq_s32(most)), most), vdupq_n_s32(2048));
}

TS_INLINE void store_bytes(uint8_t *at, int32x4_t first, int32x4_t second) {
  vst1_s8((int8_t *)at, vmovn_s16(vcombine_s16(vmovn_s32(first), vmovn_s32(second))));
}

void quantize12(const void *x, int64_t k, int32_t dtype, float inverse, uint8_t *q, int64_t stride) {
  const int32x4_t middle = vdupq_n_s32(32), six = vdupq_n_s32(63);
  for (int64_t i = 0; i < padded(k); i += 8) {
    uint8_t *at = q + i / kPanel * stride + i % kPanel;
    if (i + 8 <= k) {
      const int32x4_t first = steps_of_12(x, i, dtype, inverse), second = steps_of_12(x, i + 4, dtype, inverse);
      store_bytes(at, vsubq_s32(vshrq_n_s32(first, 6), middle), vsubq_s32(vshrq_n_s32(second, 6), middle));
      store_bytes(at + kPanel, vandq_s32(first, six), vandq_s32(second, six));
    } else {
      for (int64_t j = i; j < i + 8; ++j) {
        const int32_t value = j < k ? ts_quantize_12(ts_load(x, j, dtype), inverse) : 2048;
        at[j - i] = (uint8_t)((value >> 6) - 32);
        at[j - i + kPanel] = (uint8_t)(value & 63);
      }
    }
  }
}

template <int M>
void tile(const uint8_t *a, int64_t stride, const int8_t *w, int64_t steps, int32_t *c) {
  Sum sums[M][kVectors];
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < kVectors; ++j) sums[i][j] = nothing_yet();
  for (int64_t step = 0; step < steps; ++step, w += 4 * kPanel) {
    int8x16_t weights[kVectors];
    for (int j = 0; j < kVectors; ++j) weights[j] = vld1q_s8(w + 16 * j);
    const uint8_t *four = a + step / 16 * stride + step % 16 * 4;
    for (int i = 0; i < M; ++i) {
      int32_t bits;
      memcpy(&bits, four + i * kPanel, 4);
      const int8x16_t row = vreinterpretq_s8_s32(vdupq_n_s32(bits));
      for (int j = 0; j < kVectors; ++j) sums[i][j] = add_products(sums[i][j], weights[j], row);
    }
  }
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < kVectors; ++j) vst1q_s32(c + i * kPanel + 4 * j, total(sums[i][j]));
}

TS_INLINE Floats sum8(const int32_t *c, const int32_t *weight_sum, int32_t zero) {
  return vcvtq_f32_s32(vmlsq_s32(vld1q_s32(c), vld1q_s32(weight_sum), vdupq_n_s32(zero)));
}

TS_INLINE Floats sum12(const int32_t *upper, const int32_t *, int wide) {
  const int32x4_t high = vld1q_s32(upper), low = vld1q_s32(upper + kPanel);
  if (!wide) return vcvtq_f32_s32(vaddq_s32(vshlq_n_s32(high, 6), low));
  return plus(times(vcvtq_f32_s32(high), all(64.0f)), vcvtq_f32_s32(low));
}

// Sums in 12 bits have nothing left to take out.
TsTail rest12(const TsTail &tail) {
  TsTail same = tail;
  same.sum = kNoSums;
  return same;
}

}  // namespace

#include "int8_lanes.h"

#define TS_NEON_TABLE(name)                                                                                      \
  {name, kRows, kRows, 0, nullptr, nullptr, row_range, quantize, quantize12, nothing, nothing_either, dots, finish, \
   finish12, add_group12, finish_groups, plain_moments<kFlip>, nullptr, kFlip}
