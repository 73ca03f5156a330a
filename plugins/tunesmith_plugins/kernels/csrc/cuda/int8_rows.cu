// Rows to bytes, one block a row: the norm, the range, the quantisation (int8_row.h).
#include "int8_call.h"
#include "int8_row.h"

namespace {

struct Work {
  ts_int8_args a;
  TsCudaRows rows;
  int offset;  // taken from every q in 8 bits
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

__global__ void make_rows(Work work) {
  const ts_int8_args &a = work.a;
  const int64_t index = blockIdx.x, stride = work.rows.stride;
  Row row = row_of(a, index);
  if (a.norm) row.norm = norm_of(a, row.x);
  uint32_t keys[2];
  widen(a, row, 4 * (int64_t)threadIdx.x, 4 * kThreads, keys);
  for (uint32_t &key : keys) key = block_most(key);
  const Codes codes = codes_of(a, keys);
  if (threadIdx.x == 0) {
    work.rows.scale[index] = codes.scale;
    work.rows.zero_point[index] = codes.zero_point;
  }
  int8_t *q = work.rows.q + index * work.rows.per_row * stride;
  const bool whole = stride % 4 == 0 && (uintptr_t)q % 4 == 0;  // as all but rows for a caller of their own
  for (int64_t i = 4 * (int64_t)threadIdx.x; i < stride; i += 4 * kThreads) {
    float v[4];
    uint32_t packed[2];
    four_of(a, row, i, v);
    for (int j = 0; j < 4 && a.norm_out; ++j)
      if (i + j < a.k) ts_store(a.norm_out, index * a.k + i + j, a.dtype, v[j]);
    four_codes(a, codes, work.offset, i, v, packed);
    TS_UNROLL(2)
    for (int half = 0; half < 2; ++half) {
      if (half >= work.rows.per_row) continue;
      if (whole) *(uint32_t *)(q + half * stride + i) = packed[half];
      for (int j = 0; j < 4 && !whole; ++j)
        if (i + j < stride) q[half * stride + i + j] = (int8_t)(packed[half] >> (8 * j));
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
