// The float32 arithmetic around the integer products, one element at a time; the vector versions and int8_reference.py
// do the same operations in the same order.
#pragma once

#include "numeric.h"
#include "tunesmith.h"

namespace {

constexpr float kLog2EFloat = 0x1.715476p+0f, kLn2HighFloat = 0x1.62e4p-1f, kLn2LowFloat = 0x1.7f7d1cp-20f;
constexpr float kExpLimit = 87.0f;
// Coefficients after the leading one, 1/5040.
#define TS_EXP_FLOAT(X) X((float)(1.0 / 720.0)) X((float)(1.0 / 120.0)) X((float)(1.0 / 24.0)) X((float)(1.0 / 6.0)) X(0.5f) X(1.0f) X(1.0f)
constexpr float kExpLeadFloat = (float)(1.0 / 5040.0);
constexpr float kCubic = 0.044715f, kTwiceRootTwoOverPi = 2.0f * 0.7978845608028654f;
// erf: Abramowitz and Stegun 7.1.26
constexpr float kRootHalf = 0.7071067811865476f, kErfP = 0.3275911f, kErfLead = 1.061405429f;
#define TS_ERF_FLOAT(X) X(-1.453152027f) X(1.421413741f) X(-0.284496736f) X(0.254829592f)
constexpr float kStaticLimit = 512.0f;
constexpr int32_t kLargest12 = 2047;

TS_HD float ts_exp_float(float x) {
  if (x < -kExpLimit) x = -kExpLimit;
  if (x > kExpLimit) x = kExpLimit;
  const float n = (x * kLog2EFloat + kRoundFloat) - kRoundFloat;
  const float r = (x - n * kLn2HighFloat) - n * kLn2LowFloat;
  float p = kExpLeadFloat;
#define TS_STEP(c) p = p * r + (c);
  TS_EXP_FLOAT(TS_STEP)
#undef TS_STEP
  const int32_t power = n == n ? (int32_t)n : 0;
  return p * bits_to_float((uint32_t)(power + 127) << 23);
}

TS_HD float ts_sigmoid(float x) { return 1.0f / (1.0f + ts_exp_float(-x)); }

TS_HD float ts_activate(float x, int32_t activation) {
  switch (activation) {
    case TS_RELU:
      return x < 0 ? 0.0f : x;
    case TS_SILU:
      return x * ts_sigmoid(x);
    case TS_GELU_TANH: {
      const float cubic = x + ((x * x) * x) * kCubic;
      return x * ts_sigmoid(cubic * kTwiceRootTwoOverPi);
    }
    case TS_GELU: {
      const float z = (x < 0 ? -x : x) * kRootHalf;
      const float t = 1.0f / (1.0f + z * kErfP);
      float p = kErfLead;
#define TS_STEP(c) p = p * t + (c);
      TS_ERF_FLOAT(TS_STEP)
#undef TS_STEP
      const float tail = (p * t) * ts_exp_float(-(z * z));
      const float half = x * 0.5f;
      return x < 0 ? half * tail : half * (2.0f - tail);
    }
    default:
      return x;
  }
}

TS_HD float ts_load(const void *x, int64_t i, int32_t dtype) {
  return dtype == TS_F32 ? ((const float *)x)[i] : ts_bf16_to_float(((const uint16_t *)x)[i]);
}

TS_HD void ts_store(void *out, int64_t at, int32_t dtype, float y) {
  if (dtype == TS_F32) {
    ((float *)out)[at] = y;
  } else {
    ((uint16_t *)out)[at] = ts_float_to_bf16(y);
  }
}

// A static range may be far exceeded; what is beyond 512 steps is clamped to 0 or 255 anyway.
TS_HD uint8_t ts_quantize_clamped(float x, float inverse, int32_t zero_point) {
  float steps = x * inverse;
  if (steps < -kStaticLimit) steps = -kStaticLimit;
  if (steps > kStaticLimit) steps = kStaticLimit;
  const int32_t q = ts_round_float(steps) + zero_point;
  return (uint8_t)(q < 0 ? 0 : q > 255 ? 255 : q);
}

// The scale of a row in 12 bits, [-2047, 2047].
TS_HD float ts_row_scale_12(float lowest, float highest) {
  const float scale = (-lowest > highest ? -lowest : highest) / (float)kLargest12;
  return scale < kSmallestScale ? kSmallestScale : scale;
}
TS_HD int32_t ts_quantize_12(float x, float inverse) {
  const int32_t q = ts_round_float(x * inverse);
  return (q < -kLargest12 ? -kLargest12 : q > kLargest12 ? kLargest12 : q) + 2048;
}

// The sum of a row in 12 bits from those of its upper and lower six, as float32; wide: it may not fit int32.
TS_HD float ts_sum_12(int32_t upper, int32_t lower, int32_t weight_sum, int wide) {
  if (!wide) return (float)(int32_t)(64u * (uint32_t)upper + (uint32_t)lower - 2048u * (uint32_t)weight_sum);
  return (float)(upper - 32 * weight_sum) * 64.0f + (float)lower;
}

}  // namespace
