// The arithmetic every backend shares: scalar, vector and CUDA code must produce these very bits, and so does
// reference.py. Only IEEE add, multiply and divide are used (the build forbids contraction into fused
// multiply-adds), every sum is over integers, and everything has internal linkage, so that a unit compiled
// for a newer instruction set cannot lend its copy to the others.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)
#define TS_HD static __host__ __device__ __forceinline__
#else
#define TS_HD static inline
#endif

namespace {

// exp(d) = 2^n exp(r) in float32, after Cody and Waite's reduction d = n ln(2) + r with ln(2) split in two (n * kLn2Hi and
// the first difference are exact): a polynomial of degree 5 on |r| <= ln(2)/2 whose constant is 1, so that exp(0) is
// exactly 1. Relative error below 2.5e-7. Below kExpFloor exp is taken as exp(kExpFloor), which weighs nothing.
constexpr float kLog2E = 0x1.715476p+0f;
constexpr float kLn2Hi = 0x1.63p-1f;
constexpr float kLn2Lo = -0x1.bd0106p-13f;
constexpr float kExpFloor = -86.0f;
constexpr float kRoundFloat = 0x1.8p23f;  // adding and subtracting it rounds to an integer, ties to even
#define TS_EXP_LEAD 0x1.0fa7dap-7f
#define TS_EXP_COEFFICIENTS(X) X(0x1.573adp-5f) X(0x1.555a6ep-3f) X(0x1.fffdc4p-2f) X(0x1.fffff6p-1f) X(1.0f)

constexpr double kLn2 = 0x1.62e42fefa39efp-1;
constexpr double kIntegral = 0x1p52;  // v + 2^52 carries the integer nearest to v in its low bits
constexpr uint64_t kMantissa = (uint64_t(1) << 52) - 1;

TS_HD double bits_to_double(uint64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
TS_HD uint64_t double_to_bits(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
TS_HD float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
TS_HD uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// exp(d) for d <= 0 or -inf; exactly 1 at 0.
TS_HD float ts_exp(float d) {
  if (d < kExpFloor) d = kExpFloor;
  const float t = d * kLog2E;
  const float shifted = t + kRoundFloat;
  const float n = shifted - kRoundFloat;
  const float r = (d - n * kLn2Hi) - n * kLn2Lo;
  float p = TS_EXP_LEAD;
#define TS_STEP(c) p = p * r + (c);
  TS_EXP_COEFFICIENTS(TS_STEP)
#undef TS_STEP
  return bits_to_float(float_to_bits(p) + (float_to_bits(shifted) << 23));
}

// The integer weight of e = exp(x - max): e * 2^bits to the nearest integer, ties to even; scale is 2^bits.
TS_HD uint64_t ts_weight(float e, double scale) { return double_to_bits((double)e * scale + kIntegral) & kMantissa; }

// v in [0, 1] as an integer in the same units.
TS_HD uint64_t ts_fixed(double v, double scale) { return double_to_bits(v * scale + kIntegral) & kMantissa; }

// -d exp(d) in these units, where e = exp(d).
TS_HD uint64_t ts_depth(float d, float e, double scale) {
  return ts_fixed((double)e * -(double)(d < kExpFloor ? kExpFloor : d), scale);
}

// 44 bits up to 2^18 tokens; fewer above, so that a sum over the vocabulary stays below 2^63.
TS_HD int ts_weight_bits(int64_t vocab) {
  int log2 = 0;
  while ((int64_t(1) << log2) < vocab) ++log2;
  return log2 <= 18 ? 44 : 62 - log2;
}

// ln(v) for normal v > 0 through atanh: ln(m) = 2 (s + s^3/3 + ...), s = (m-1)/(m+1), m in [sqrt(1/2), sqrt(2)).
TS_HD double ts_log(double v) {
  const uint64_t bits = double_to_bits(v);
  int64_t exponent = (int64_t)(bits >> 52) - 1023;
  double m = bits_to_double((bits & kMantissa) | (uint64_t(1023) << 52));
  if (m >= 0x1.6a09e667f3bcdp+0) {
    m = m * 0.5;
    exponent += 1;
  }
  const double s = (m - 1.0) / (m + 1.0);
  const double q = s * s;
  double p = 1.0 / 23.0;
#define TS_STEP(k) p = p * q + 1.0 / (k);
  TS_STEP(21.0) TS_STEP(19.0) TS_STEP(17.0) TS_STEP(15.0) TS_STEP(13.0) TS_STEP(11.0) TS_STEP(9.0) TS_STEP(7.0)
  TS_STEP(5.0) TS_STEP(3.0) TS_STEP(1.0)
#undef TS_STEP
  return (double)exponent * kLn2 + (2.0 * s) * p;
}

// log-probability of a token of logit x in a row whose maximum is max and whose weights add up to total. Never -0: which of two
// zeros is the maximum depends on the order of reading.
TS_HD float ts_logp(float x, float max, uint64_t total, double scale) {
  const double mass = (double)(int64_t)total / scale;
  return (float)(((double)x - (double)max) - ts_log(mass)) + 0.0f;
}

// The most mass that top-p may drop: floor((1 - p) * total).
TS_HD uint64_t ts_top_p_limit(double p, uint64_t total) { return (uint64_t)((1.0 - p) * (double)(int64_t)total); }

// Floats as unsigned integers of the same order; -0 and +0 are equal.
TS_HD uint32_t ts_order_key(float value) {
  const uint32_t bits = float_to_bits(value + 0.0f);
  return (bits >> 31) ? ~bits : bits | 0x80000000u;
}

// The float of such a number; of the two zeros +0.
TS_HD float key_to_float(uint32_t key) { return bits_to_float((key >> 31) ? key & 0x7fffffffu : ~key); }

TS_HD uint64_t ts_mulhi(uint64_t a, uint64_t b) {
  const uint64_t al = a & 0xffffffffu, ah = a >> 32, bl = b & 0xffffffffu, bh = b >> 32;
  const uint64_t middle = ah * bl + ((al * bl) >> 32);
  return ah * bh + (middle >> 32) + ((al * bh + (middle & 0xffffffffu)) >> 32);
}

// Philox4x32-10 (Salmon et al., 2011): key = seed, counter words = (draw, position, stream low, stream high);
// the first two output words, low one first.
TS_HD uint64_t ts_uniform_bits(int64_t seed, int64_t stream, int64_t position, int64_t draw) {
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)((uint64_t)seed >> 32);
  uint32_t c0 = (uint32_t)draw, c1 = (uint32_t)position, c2 = (uint32_t)stream, c3 = (uint32_t)((uint64_t)stream >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
    c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
    c1 = (uint32_t)p1;
    c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c3 = (uint32_t)p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return (uint64_t)c0 | ((uint64_t)c1 << 32);
}

TS_HD float ts_bf16_to_float(uint16_t half) { return bits_to_float((uint32_t)half << 16); }

TS_HD uint16_t ts_float_to_bf16(float value) {
  const uint32_t bits = float_to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
  return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

TS_HD float ts_f16_to_float(uint16_t half) {
  const uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = (half >> 10) & 31, fraction = half & 1023;
  if (exponent == 31) return bits_to_float(sign | 0x7f800000u | (fraction << 13));
  if (exponent) return bits_to_float(sign | ((exponent + 112) << 23) | (fraction << 13));
  const float magnitude = (float)fraction * 0x1p-24f;
  return sign ? -magnitude : magnitude;
}

// Row quantisation: x is about scale * (q - zero_point), q in [0, 255]; the range always contains 0.
constexpr float kSmallestScale = 0x1p-126f;  // below it 1/scale would overflow

TS_HD float ts_row_scale(float lowest, float highest) {
  const float scale = highest / 255.0f - lowest / 255.0f;
  return scale < kSmallestScale ? kSmallestScale : scale;
}
TS_HD int32_t ts_round_float(float value) { return (int32_t)((value + kRoundFloat) - kRoundFloat); }

TS_HD int32_t ts_row_zero_point(float lowest, float inverse) {
  const int32_t zero = ts_round_float(-lowest * inverse);
  return zero > 255 ? 255 : zero;
}
// acc = sum over k of q * w; the zero point is taken out in int32, where the true value always fits.
TS_HD float ts_dequantize(int32_t acc, int32_t zero_point, int32_t weight_sum, float row_scale, float weight_scale) {
  const uint32_t dot = (uint32_t)acc - (uint32_t)zero_point * (uint32_t)weight_sum;
  return (float)(int32_t)dot * (row_scale * weight_scale);
}

}  // namespace
