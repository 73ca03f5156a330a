// How the parts of an int8 call on a CUDA device fit together. Rows are quantised to signed bytes: q - 128, or two rows
// for one in 12 bits (the upper six less 32, the lower six). Products are int32; the tail makes results of them.
#pragma once

#include "block.h"
#include "int8_math.h"

constexpr int64_t kAlign = 16;  // n and k of weights and of quantised rows are padded to it
constexpr int kOffset = 128;    // taken from every q

struct TsCudaRows {
  int8_t *q;  // (count * per_row, stride)
  float *scale;
  int32_t *zero_point;
  int64_t count, stride;
  int per_row;
};

struct TsCudaTail {
  ts_int8_layer layer;
  const float *row_scale;
  const int32_t *zero_point;
  int32_t dtype, twelve_bits, wide;
};

// x to rows (int8_rows.cu), with the norm that may come first.
int32_t ts_cuda_make_rows(const ts_int8_args &args, const TsCudaRows &rows, void *stream);
// The same, products and tail of one layer in one kernel of int8_product.cu, where rows are few and short. TS_UNSUPPORTED: they are
// not, or there is a norm, and nothing was done.
int32_t ts_cuda_few_rows(const ts_int8_args &args, const TsCudaRows &rows, const TsCudaTail &tail, void *stream);
// Products and tail by the kernel of int8_product.cu, and by that of int8_groups.cu for weights with a scale a group.
int32_t ts_cuda_product(const TsCudaRows &rows, const TsCudaTail &tail, void *stream);
int32_t ts_cuda_groups(const TsCudaRows &rows, const TsCudaTail &tail, int64_t k, int64_t group_size, void *stream);
// Products by cublasLt: sums (quantised rows, channels padded to 16). False: not there, or not willing; nothing was done.
bool ts_cublaslt_ready();
bool ts_cublaslt_product(const int8_t *q, int64_t rows, const int8_t *weight, int64_t channels, int64_t k, int32_t *sums, void *stream);

namespace {

inline int64_t up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Sums to a result before the bias; the second one is that of the lower six bits.
__device__ inline float dequantised(const TsCudaTail &t, int64_t row, int64_t column, int32_t first, int32_t second) {
  const float row_scale = t.row_scale[row], scale = t.layer.scale[column];
  if (t.twelve_bits) return ts_sum_12(first, second, 0, t.wide) * (row_scale * scale);
  return ts_dequantize(first, t.zero_point[row] - kOffset, t.layer.sum[column], row_scale, scale);
}

// With the bias and what follows it.
__device__ inline float finished(const TsCudaTail &t, int64_t row, int64_t column, float y) {
  const int64_t at = row * t.layer.out_stride + column;
  if (t.layer.bias) y = y + t.layer.bias[column];
  y = ts_activate(y, t.layer.activation);
  if (t.layer.multiply) y = y * ts_load(t.layer.multiply, at, t.dtype);
  if (t.layer.residual) y = y + ts_load(t.layer.residual, at, t.dtype);
  return y;
}

__device__ inline void write_result(const TsCudaTail &t, int64_t row, int64_t column, float y) {
  ts_store(t.layer.out, row * t.layer.out_stride + column, t.dtype, finished(t, row, column, y));
}

}  // namespace
