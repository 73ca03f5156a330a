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

constexpr uint8_t kFlip = 0x80;
constexpr int kRows = 4;
const int32_t kNoSums[kPanel] = {};

TS_INLINE float32x4_t load(const void *x, int64_t i, int32_t dtype) {
  if (dtype == TS_F32) return vld1q_f32((const float *)x + i);
  return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16((const uint16_t *)x + i), 16));
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

void nothing(int) {}
void nothing_either() {}

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

void dots(const uint8_t *a, const uint8_t *, int64_t stride, int m, const int8_t *panel, int64_t steps, int32_t *c) {
  for (int j = 0; j < kPanel; j += 4 * kVectors) {
    switch (m) {
      case 1:
        tile<1>(a, stride, panel + 4 * j, steps, c + j);
        break;
      case 2:
        tile<2>(a, stride, panel + 4 * j, steps, c + j);
        break;
      case 3:
        tile<3>(a, stride, panel + 4 * j, steps, c + j);
        break;
      default:
        tile<4>(a, stride, panel + 4 * j, steps, c + j);
    }
  }
}

TS_INLINE float32x4_t exp_of(float32x4_t x) {
  x = vminq_f32(vmaxq_f32(x, vdupq_n_f32(-kExpLimit)), vdupq_n_f32(kExpLimit));  // a NaN stays one
  const float32x4_t n = vrndnq_f32(vmulq_n_f32(x, kLog2EFloat));
  const float32x4_t r = vsubq_f32(vsubq_f32(x, vmulq_n_f32(n, kLn2HighFloat)), vmulq_n_f32(n, kLn2LowFloat));
  float32x4_t p = vdupq_n_f32(kExpLeadFloat);
#define TS_STEP(c) p = vaddq_f32(vmulq_f32(p, r), vdupq_n_f32(c));
  TS_EXP_FLOAT(TS_STEP)
#undef TS_STEP
  const int32x4_t power = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
  return vmulq_f32(p, vreinterpretq_f32_s32(power));
}

TS_INLINE float32x4_t sigmoid(float32x4_t x) {
  const float32x4_t one = vdupq_n_f32(1.0f);
  return vdivq_f32(one, vaddq_f32(one, exp_of(vnegq_f32(x))));
}

TS_INLINE float32x4_t activate(float32x4_t x, int32_t activation) {
  const uint32x4_t negative = vcltq_f32(x, vdupq_n_f32(0));
  switch (activation) {
    case TS_RELU:
      return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(x), negative));
    case TS_SILU:
      return vmulq_f32(x, sigmoid(x));
    case TS_GELU_TANH: {
      const float32x4_t cubic = vaddq_f32(x, vmulq_n_f32(vmulq_f32(vmulq_f32(x, x), x), kCubic));
      return vmulq_f32(x, sigmoid(vmulq_n_f32(cubic, kTwiceRootTwoOverPi)));
    }
    case TS_GELU: {
      const float32x4_t one = vdupq_n_f32(1.0f), z = vmulq_n_f32(vabsq_f32(x), kRootHalf);
      const float32x4_t t = vdivq_f32(one, vaddq_f32(one, vmulq_n_f32(z, kErfP)));
      float32x4_t p = vdupq_n_f32(kErfLead);
#define TS_STEP(c) p = vaddq_f32(vmulq_f32(p, t), vdupq_n_f32(c));
      TS_ERF_FLOAT(TS_STEP)
#undef TS_STEP
      const float32x4_t tail = vmulq_f32(vmulq_f32(p, t), exp_of(vnegq_f32(vmulq_f32(z, z))));
      const float32x4_t half = vmulq_n_f32(x, 0.5f);
      const float32x4_t above = vmulq_f32(half, vsubq_f32(vdupq_n_f32(2.0f), tail));
      return vbslq_f32(negative, vmulq_f32(half, tail), above);
    }
    default:
      return x;
  }
}

void result(const TsTail &tail, int64_t row, int j, float32x4_t y) {
  if (tail.bias) y = vaddq_f32(y, vld1q_f32(tail.bias + j));
  if (tail.activation) y = activate(y, tail.activation);
  const int64_t at = row * tail.out_stride + j;
  if (tail.multiply) y = vmulq_f32(y, load(tail.multiply, at, tail.dtype));
  if (tail.residual) y = vaddq_f32(y, load(tail.residual, at, tail.dtype));
  if (tail.dtype == TS_F32) {
    vst1q_f32((float *)tail.out + at, y);
    return;
  }
  const uint32x4_t bits = vreinterpretq_u32_f32(y), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t half = vshrq_n_u32(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd), 16);
  vst1_u16((uint16_t *)tail.out + at, vmovn_u32(vbslq_u32(vceqq_f32(y, y), half, vdupq_n_u32(0x7fc0))));
}

TS_INLINE float32x4_t sum12(const int32_t *upper, int wide) {
  const int32x4_t high = vld1q_s32(upper), low = vld1q_s32(upper + kPanel);
  if (!wide) return vcvtq_f32_s32(vaddq_s32(vshlq_n_s32(high, 6), low));
  return vaddq_f32(vmulq_n_f32(vcvtq_f32_s32(high), 64.0f), vcvtq_f32_s32(low));
}

// Sums in 12 bits have nothing left to take out.
TsTail without_sums(const TsTail &tail) {
  TsTail same = tail;
  same.sum = kNoSums;
  return same;
}

int whole(const TsTail &tail) { return tail.columns / 4 * 4; }

void finish(const int32_t *c, int m, const float *row_scale, const int32_t *zero_point, const TsTail &tail) {
  int32_t zero[kRows];
  for (int i = 0; i < m; ++i) {
    zero[i] = zero_point[i] - kFlip;
    for (int j = 0; j < whole(tail); j += 4) {
      const int32x4_t dot = vmlsq_s32(vld1q_s32(c + i * kPanel + j), vld1q_s32(tail.sum + j), vdupq_n_s32(zero[i]));
      result(tail, i, j, vmulq_f32(vcvtq_f32_s32(dot), vmulq_n_f32(vld1q_f32(tail.scale + j), row_scale[i])));
    }
  }
  plain_finish(c, m, row_scale, zero, tail, whole(tail));
}

void finish12(const int32_t *c, int m, const float *row_scale, int wide, const TsTail &tail) {
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < whole(tail); j += 4)
      result(tail, i, j, vmulq_f32(sum12(c + 2 * i * kPanel + j, wide), vmulq_n_f32(vld1q_f32(tail.scale + j), row_scale[i])));
  }
  plain_finish12(c, m, row_scale, wide, without_sums(tail), whole(tail));
}

void add_group12(const int32_t *c, int m, const TsTail &tail, float *y) {
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < whole(tail); j += 4) {
      float *at = y + i * kPanel + j;
      vst1q_f32(at, vaddq_f32(vld1q_f32(at), vmulq_f32(sum12(c + 2 * i * kPanel + j, 0), vld1q_f32(tail.scale + j))));
    }
  }
  plain_add_group12(c, m, without_sums(tail), y, whole(tail));
}

void finish_groups(const float *y, int m, const float *row_scale, const TsTail &tail) {
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < whole(tail); j += 4) result(tail, i, j, vmulq_n_f32(vld1q_f32(y + i * kPanel + j), row_scale[i]));
  }
  plain_finish_groups(y, m, row_scale, tail, whole(tail));
}

}  // namespace

#define TS_NEON_TABLE(name)                                                                                      \
  {name, kRows, kRows, 0, nullptr, nullptr, row_range, quantize, quantize12, nothing, nothing_either, dots, finish, \
   finish12, add_group12, finish_groups, plain_moments<kFlip>, nullptr, kFlip}
