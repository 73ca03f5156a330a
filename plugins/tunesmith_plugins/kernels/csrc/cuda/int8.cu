// Row quantisation (one block a row) and a plain tiled int8 product with the CPU's epilogue; messages of the library.
#include "block.h"

namespace {

thread_local char message[512] = "";

__global__ void quantize_rows(const void *x, int64_t k, int64_t row_stride, int32_t dtype, uint8_t *q, float *scale,
                              int32_t *zero_point) {
  const int64_t index = blockIdx.x;
  const char *row = (const char *)x + index * row_stride * (dtype == TS_F32 ? 4 : 2);
  float low = 0, high = 0;
  uint64_t bad = 0;
  for (int64_t i = threadIdx.x; i < k; i += kThreads) {
    const float v = load_one(row, i, dtype);
    bad += (float_to_bits(v) & 0x7f800000u) == 0x7f800000u;
    low = v < low ? v : low;
    high = v > high ? v : high;
  }
  bad = block_sum(bad);
  low = -block_max(-low);
  high = block_max(high);
  const float row_scale = ts_row_scale(low, high), inverse = 1.0f / row_scale;
  const int32_t zero = bad ? 0 : ts_row_zero_point(low, inverse);
  if (threadIdx.x == 0) {
    scale[index] = bad ? bits_to_float(0x7fc00000u) : row_scale;
    zero_point[index] = zero;
  }
  for (int64_t i = threadIdx.x; i < k; i += kThreads)
    q[index * k + i] = bad ? 0 : ts_quantize_one(load_one(row, i, dtype), inverse, zero);
}

constexpr int kTile = TS_THREADS >= 256 ? 16 : 2;  // a tile of outputs a block, one output a thread
constexpr int kDepth = 64;

__global__ void linear(ts_linear_args a, int64_t column_tiles) {
  __shared__ uint8_t left[kTile][kDepth];
  __shared__ int8_t right[kTile][kDepth + 4];  // padded against bank conflicts
  const int64_t row0 = (int64_t)blockIdx.x / column_tiles * kTile, column0 = (int64_t)blockIdx.x % column_tiles * kTile;
  const int i = threadIdx.x / kTile, j = threadIdx.x % kTile;
  const bool works = i < kTile;
  int32_t sum = 0;
  for (int64_t base = 0; base < a.k; base += kDepth) {
    for (int at = threadIdx.x; at < kTile * kDepth; at += kThreads) {
      const int r = at / kDepth, t = at % kDepth;
      const bool inside = base + t < a.k;
      left[r][t] = inside && row0 + r < a.rows ? a.q[(row0 + r) * a.k + base + t] : 0;
      right[r][t] = inside && column0 + r < a.n ? a.weight[(column0 + r) * a.k + base + t] : 0;
    }
    __syncthreads();
    if (works) {
      for (int t = 0; t < kDepth; ++t) sum += (int32_t)left[i][t] * (int32_t)right[j][t];
    }
    __syncthreads();
  }
  const int64_t row = row0 + i, column = column0 + j;
  if (!works || row >= a.rows || column >= a.n) return;
  float y = ts_dequantize(sum, a.row_zero_point[row], a.weight_sum[column], a.row_scale[row], a.weight_scale[column]);
  if (a.bias) y = y + a.bias[column];
  if (a.dtype == TS_F32) {
    ((float *)a.out)[row * a.n + column] = y;
  } else {
    ((uint16_t *)a.out)[row * a.n + column] = ts_float_to_bf16(y);
  }
}

int32_t check_rows(const void *x, int64_t rows, int64_t k, int32_t dtype) {
  if (rows < 0 || rows > INT32_MAX || k < 1 || (rows && !x) || (dtype != TS_F32 && dtype != TS_BF16))
    return ts_cuda_fail(TS_INVALID, "x must be (rows, k) float32 or bfloat16");
  return TS_OK;
}

}  // namespace

int32_t ts_cuda_fail(int32_t code, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return code;
}

int32_t ts_cuda_launched() {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return TS_OK;
  return ts_cuda_fail(TS_INTERNAL, "CUDA: %s", cudaGetErrorString(error));
}

extern "C" int32_t ts_cuda_abi_version(void) { return TS_ABI_VERSION; }

extern "C" const char *ts_cuda_last_error(void) { return message; }

extern "C" int32_t ts_cuda_quantize_rows(const ts_quantize_args *args) {
  if (!args) return ts_cuda_fail(TS_INVALID, "no arguments");
  const ts_quantize_args &a = *args;
  const int32_t code = check_rows(a.x, a.rows, a.k, a.dtype);
  if (code != TS_OK || a.rows == 0) return code;
  TS_LAUNCH(quantize_rows, (unsigned)a.rows, a.cuda_stream, a.x, a.k, a.row_stride, a.dtype, a.q, a.scale, a.zero_point);
  return ts_cuda_launched();
}

extern "C" int32_t ts_cuda_int8_linear(const ts_linear_args *args) {
  if (!args) return ts_cuda_fail(TS_INVALID, "no arguments");
  const ts_linear_args &a = *args;
  int32_t code = check_rows(a.x, a.rows, a.k, a.dtype);
  if (code != TS_OK || a.rows == 0 || a.n == 0) return code;
  if (a.k > TS_MAX_K)
    return ts_cuda_fail(TS_INVALID, "k = %lld is above %d, where an int32 sum could overflow", (long long)a.k, TS_MAX_K);
  const int64_t column_tiles = (a.n + kTile - 1) / kTile, tiles = (a.rows + kTile - 1) / kTile * column_tiles;
  if (tiles > INT32_MAX) return ts_cuda_fail(TS_INVALID, "the result is too large for one call");
  TS_LAUNCH(quantize_rows, (unsigned)a.rows, a.cuda_stream, a.x, a.k, a.row_stride, a.dtype, a.q, a.row_scale, a.row_zero_point);
  code = ts_cuda_launched();
  if (code != TS_OK) return code;
  TS_LAUNCH(linear, (unsigned)tiles, a.cuda_stream, a, column_tiles);
  return ts_cuda_launched();
}
