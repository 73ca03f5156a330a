// Row quantisation and the int8 linear layer: integer dot products, one fused epilogue.
#include <math.h>

#include <vector>

#include "error.h"
#include "isa.h"
#include "load.h"
#include "numeric.h"
#include "tunesmith.h"

namespace {

int32_t check_rows(const void *x, int64_t rows, int64_t k, int32_t dtype) {
  if (rows < 0 || k < 1) return ts_fail(TS_INVALID, "x must be (rows, k) with k >= 1, not (%lld, %lld)", (long long)rows, (long long)k);
  if (dtype != TS_F32 && dtype != TS_BF16) return ts_fail(TS_UNSUPPORTED, "x must be float32 or bfloat16");
  if (rows && !x) return ts_fail(TS_INVALID, "x must not be null");
  return TS_OK;
}

// A row with a NaN or an infinity gets scale NaN and zeros, so that whatever is computed from it is NaN.
void quantize_row(const TsKernels &kernels, const float *x, int64_t k, uint8_t *q, float *scale, int32_t *zero_point) {
  float lowest = 0, highest = 0;
  if (!kernels.row_range(x, k, &lowest, &highest)) {
    *scale = NAN;
    *zero_point = 0;
    memset(q, 0, (size_t)k);
    return;
  }
  *scale = ts_row_scale(lowest, highest);
  const float inverse = 1.0f / *scale;
  *zero_point = ts_row_zero_point(lowest, inverse);
  kernels.quantize(x, k, inverse, *zero_point, q);
}

const float *as_floats(const void *x, int64_t row, int64_t stride, int64_t k, int32_t dtype, std::vector<float> &buffer) {
  const void *source = ts_row(x, row, stride, dtype);
  if (dtype == TS_F32) return (const float *)source;
  ts_load_row(source, k, dtype, buffer.data());
  return buffer.data();
}

}  // namespace

extern "C" int32_t ts_quantize_rows(const ts_quantize_args *args) {
  return ts_guard([args]() -> int32_t {
    if (!args) return ts_fail(TS_INVALID, "no arguments");
    const ts_quantize_args &a = *args;
    const int32_t code = check_rows(a.x, a.rows, a.k, a.dtype);
    if (code != TS_OK) return code;
    const TsKernels *kernels = ts_kernels();
    if (!kernels) return TS_UNSUPPORTED;
    std::vector<float> buffer(a.dtype == TS_F32 ? 0 : (size_t)a.k);
    for (int64_t row = 0; row < a.rows; ++row) {
      const float *x = as_floats(a.x, row, a.row_stride, a.k, a.dtype, buffer);
      quantize_row(*kernels, x, a.k, a.q + row * a.k, a.scale + row, a.zero_point + row);
    }
    return TS_OK;
  });
}

extern "C" int32_t ts_int8_linear(const ts_linear_args *args) {
  return ts_guard([args]() -> int32_t {
    if (!args) return ts_fail(TS_INVALID, "no arguments");
    const ts_linear_args &a = *args;
    const int32_t code = check_rows(a.x, a.rows, a.k, a.dtype);
    if (code != TS_OK) return code;
    if (a.k > TS_MAX_K)
      return ts_fail(TS_INVALID, "k = %lld is above %d, where an int32 sum could overflow", (long long)a.k, TS_MAX_K);
    if (a.n < 0 || (a.n && (!a.weight || !a.weight_scale || !a.weight_sum))) return ts_fail(TS_INVALID, "weight, its scale and its sums must not be null");
    const TsKernels *kernels = ts_kernels();
    if (!kernels) return TS_UNSUPPORTED;
    // Each weight row is read once for every kTileRows rows of x; a block of x rows is quantised just before use.
    std::vector<float> buffer(a.dtype == TS_F32 ? 0 : (size_t)a.k);
    std::vector<uint8_t> q((size_t)a.k * kTileRows);
    float scale[kTileRows];
    int32_t zero_point[kTileRows];
    int32_t sums[kTileRows * kTileColumns];
    for (int64_t row = 0; row < a.rows; row += kTileRows) {
      const int m = a.rows - row < kTileRows ? (int)(a.rows - row) : kTileRows;
      for (int i = 0; i < m; ++i) {
        const float *x = as_floats(a.x, row + i, a.row_stride, a.k, a.dtype, buffer);
        quantize_row(*kernels, x, a.k, q.data() + i * a.k, scale + i, zero_point + i);
      }
      for (int64_t column = 0; column < a.n; column += kTileColumns) {
        const int n = a.n - column < kTileColumns ? (int)(a.n - column) : kTileColumns;
        kernels->dots(q.data(), a.k, m, a.weight + column * a.k, a.k, n, a.k, sums);
        for (int i = 0; i < m; ++i) {
          for (int j = 0; j < n; ++j) {
            const int64_t channel = column + j, at = (row + i) * a.n + channel;
            float y = ts_dequantize(sums[i * n + j], zero_point[i], a.weight_sum[channel], scale[i], a.weight_scale[channel]);
            if (a.bias) y = y + a.bias[channel];
            if (a.dtype == TS_F32) {
              ((float *)a.out)[at] = y;
            } else {
              ((uint16_t *)a.out)[at] = ts_float_to_bf16(y);
            }
          }
        }
      }
    }
    return TS_OK;
  });
}
