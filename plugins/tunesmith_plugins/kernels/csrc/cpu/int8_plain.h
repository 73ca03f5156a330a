// Epilogues and row loops one element at a time: all of the scalar table, and the ends that vectors do not fill.
#pragma once

#include <math.h>

#include "int8_kernels.h"
#include "int8_math.h"

namespace {

inline int plain_row_range(const void *x, int64_t k, int32_t dtype, float *lowest, float *highest) {
  int finite = 1;
  float low = *lowest, high = *highest;
  for (int64_t i = 0; i < k; ++i) {
    const float v = ts_load(x, i, dtype);
    if ((float_to_bits(v) & 0x7f800000u) == 0x7f800000u) finite = 0;
    if (v < low) low = v;
    if (v > high) high = v;
  }
  *lowest = low;
  *highest = high;
  return finite;
}

inline int64_t padded(int64_t k) { return (k + kPanel - 1) / kPanel * kPanel; }

inline void plain_quantize(const void *x, int64_t k, int32_t dtype, float inverse, int32_t zero_point, uint8_t *q, int64_t stride) {
  for (int64_t i = 0; i < padded(k); ++i)
    q[i / kPanel * stride + i % kPanel] = i < k ? ts_quantize_clamped(ts_load(x, i, dtype), inverse, zero_point) : 0;
}

inline void plain_quantize12(const void *x, int64_t k, int32_t dtype, float inverse, uint8_t *q, int64_t stride) {
  for (int64_t i = 0; i < padded(k); ++i) {
    const int32_t value = i < k ? ts_quantize_12(ts_load(x, i, dtype), inverse) : 0;
    uint8_t *at = q + i / kPanel * stride + i % kPanel;
    at[0] = (uint8_t)(value >> 6);
    at[kPanel] = (uint8_t)(value & 63);
  }
}

template <uint8_t Flip = 0>
void plain_moments(const uint8_t *q, int64_t k, int64_t stride, int64_t *sum, int64_t *squares) {
  int64_t first = 0, second = 0;
  for (int64_t i = 0; i < k; i += kPanel, q += stride) {
    const int many = (int)(k - i < kPanel ? k - i : kPanel);
    int32_t here = 0, square = 0;
    for (int j = 0; j < many; ++j) {
      const int32_t code = q[j] ^ Flip;
      here += code, square += code * code;
    }
    first += here, second += square;
  }
  *sum = first, *squares = second;
}

inline void plain_result(const TsTail &tail, int64_t row, int j, float y) {
  const int64_t at = row * tail.out_stride + j;
  if (tail.bias) y = y + tail.bias[j];
  y = ts_activate(y, tail.activation);
  if (tail.multiply) y = y * ts_load(tail.multiply, at, tail.dtype);
  if (tail.residual) y = y + ts_load(tail.residual, at, tail.dtype);
  ts_store(tail.out, at, tail.dtype, y);
}

inline void plain_finish(const int32_t *c, int m, const float *row_scale, const int32_t *zero_point, const TsTail &tail, int from) {
  for (int i = 0; i < m; ++i)
    for (int j = from; j < tail.columns; ++j)
      plain_result(tail, i, j, ts_dequantize(c[i * kPanel + j], zero_point[i], tail.sum[j], row_scale[i], tail.scale[j]));
}

inline void plain_finish12(const int32_t *c, int m, const float *row_scale, int wide, const TsTail &tail, int from) {
  for (int i = 0; i < m; ++i) {
    const int32_t *upper = c + 2 * i * kPanel, *lower = upper + kPanel;
    for (int j = from; j < tail.columns; ++j)
      plain_result(tail, i, j, ts_sum_12(upper[j], lower[j], tail.sum[j], wide) * (row_scale[i] * tail.scale[j]));
  }
}

inline void plain_add_group12(const int32_t *c, int m, const TsTail &tail, float *y, int from) {
  for (int i = 0; i < m; ++i) {
    const int32_t *upper = c + 2 * i * kPanel, *lower = upper + kPanel;
    for (int j = from; j < tail.columns; ++j) {
      float &sum = y[i * kPanel + j];
      sum = sum + ts_sum_12(upper[j], lower[j], tail.sum[j], 0) * tail.scale[j];
    }
  }
}

inline void plain_finish_groups(const float *y, int m, const float *row_scale, const TsTail &tail, int from) {
  for (int i = 0; i < m; ++i)
    for (int j = from; j < tail.columns; ++j) plain_result(tail, i, j, y[i * kPanel + j] * row_scale[i]);
}

}  // namespace
