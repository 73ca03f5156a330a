// Rows to bytes, one block a row: the norm, the range, the quantisation.
#include "int8.h"
#include "int8_call.h"

namespace {

struct Work {
  ts_int8_args a;
  TsCudaRows rows;
  int offset;  // taken from every q in 8 bits
};

// What the norm does to a row: (x - centre) * factor * weight + bias.
struct Norm {
  float centre, factor;
};

// Sums in float64 over eight lanes, each in order, so that they have the bits of the CPU.
__device__ Norm norm_of(const ts_int8_args &a, const void *x) {
  __shared__ double lanes[8];
  __shared__ double mean;
  const int lane = (int)threadIdx.x;
  double sum = 0;
  if (a.norm == TS_LAYER_NORM && lane < 8) {
    for (int64_t i = lane; i < a.k; i += 8) sum += (double)ts_load(x, i, a.dtype);
  }
  if (lane < 8) lanes[lane] = sum;
  __syncthreads();
  if (lane == 0) {
    double all = 0;
    for (int i = 0; i < 8; ++i) all += lanes[i];
    mean = all / (double)a.k;
  }
  __syncthreads();
  double square = 0;
  if (lane < 8) {
    for (int64_t i = lane; i < a.k; i += 8) {
      const double apart = (double)ts_load(x, i, a.dtype) - mean;
      square += apart * apart;
    }
    lanes[lane] = square;
  }
  __syncthreads();
  square = 0;
  for (int i = 0; i < 8; ++i) square += lanes[i];
  const Norm norm = {(float)mean, (float)(1.0 / sqrt(square / (double)a.k + a.norm_epsilon))};
  __syncthreads();
  return norm;
}

__device__ float value(const ts_int8_args &a, const void *x, int64_t i, const Norm &norm) {
  const float v = ts_load(x, i, a.dtype);
  if (!a.norm) return v;
  const float y = (v - norm.centre) * norm.factor * a.norm_weight[i];
  return a.norm_bias ? y + a.norm_bias[i] : y;
}

__global__ void make_rows(Work work) {
  const ts_int8_args &a = work.a;
  const int64_t row = blockIdx.x;
  const char *x = (const char *)a.x + row * a.row_stride * (a.dtype == TS_F32 ? 4 : 2);
  Norm norm = {0, 1};
  if (a.norm) norm = norm_of(a, x);
  float low = 0, high = 0;
  uint64_t bad = 0;
  for (int64_t i = threadIdx.x; i < a.k; i += kThreads) {
    const float v = value(a, x, i, norm);
    bad += (float_to_bits(v) & 0x7f800000u) == 0x7f800000u;
    low = v < low ? v : low;
    high = v > high ? v : high;
  }
  bad = block_sum(bad);
  low = -block_max(-low);
  high = block_max(high);
  float scale = a.static_scale;
  if (a.mode == TS_DYNAMIC) scale = ts_row_scale(low, high);
  if (a.mode == TS_WEIGHT_ONLY) scale = ts_row_scale_12(low, high);
  const float inverse = 1.0f / scale;
  const int32_t zero = bad || a.mode == TS_WEIGHT_ONLY ? 0 : a.mode == TS_STATIC ? a.static_zero_point : ts_row_zero_point(low, inverse);
  if (threadIdx.x == 0) {
    work.rows.scale[row] = bad ? bits_to_float(0x7fc00000u) : scale;
    work.rows.zero_point[row] = zero;
  }
  int8_t *q = work.rows.q + row * work.rows.per_row * work.rows.stride;
  for (int64_t i = threadIdx.x; i < work.rows.stride; i += kThreads) {
    const float v = i < a.k ? value(a, x, i, norm) : 0;
    if (i < a.k && a.norm_out) ts_store(a.norm_out, row * a.k + i, a.dtype, v);
    const bool there = i < a.k && !bad;
    if (a.mode == TS_WEIGHT_ONLY) {
      const int32_t bits = there ? ts_quantize_12(v, inverse) : 2048;
      q[i] = (int8_t)((bits >> 6) - 32);
      q[work.rows.stride + i] = (int8_t)(bits & 63);
    } else {
      q[i] = there ? (int8_t)(ts_quantize_clamped(v, inverse, zero) - work.offset) : 0;
    }
  }
}

int32_t launch(const Work &work, void *stream) {
  if (work.a.rows > INT32_MAX) return ts_cuda_fail(TS_INVALID, "%lld rows are too many for one call", (long long)work.a.rows);
  TS_LAUNCH(make_rows, (unsigned)work.a.rows, stream, work);
  return ts_cuda_launched();
}

}  // namespace

int32_t ts_cuda_make_rows(const ts_int8_args &args, const TsCudaRows &rows, void *stream) {
  return launch({args, rows, kOffset}, stream);
}

extern "C" int32_t ts_cuda_quantize_rows(const ts_quantize_args *args) {
  if (!args) return ts_cuda_fail(TS_INVALID, "no arguments");
  const ts_quantize_args &a = *args;
  const int32_t code = ts_check_rows(a.x, a.rows, a.k, a.dtype, ts_cuda_fail);
  if (code != TS_OK || a.rows == 0) return code;
  Work work = {};
  work.a.x = a.x;
  work.a.rows = a.rows;
  work.a.k = a.k;
  work.a.row_stride = a.row_stride;
  work.a.dtype = a.dtype;
  work.rows = {(int8_t *)a.q, a.scale, a.zero_point, a.rows, a.k, 1};
  return launch(work, a.cuda_stream);
}
