// What a block of threads does together. Included by CUDA units, and by the test that runs them on CPU threads.
#pragma once

#if defined(TS_CUDA_ON_CPU)
#include "cuda_on_cpu.h"
#else
#include <cuda_runtime.h>
#define TS_PRAGMA(text) _Pragma(#text)
#define TS_UNROLL(times) TS_PRAGMA(unroll times)
#define TS_LAUNCH(kernel, grid, stream, ...) kernel<<<grid, kThreads, 0, (cudaStream_t)(stream)>>>(__VA_ARGS__)
#endif

#include <stdarg.h>
#include <stdio.h>

#include "numeric.h"
#include "tunesmith.h"

#if !defined(TS_THREADS)
#define TS_THREADS 256
#endif

int32_t ts_cuda_fail(int32_t code, const char *format, ...);
int32_t ts_cuda_launched();

namespace {

constexpr int kThreads = TS_THREADS;

struct Add {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a + b; }
};
struct Least {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a < b ? a : b; }
};

// The combination of every thread's value, given to all of them; integers, so the order does not matter.
template <typename Combine>
__device__ uint64_t block_all(uint64_t value, Combine combine) {
  __shared__ uint64_t values[kThreads];
  values[threadIdx.x] = value;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if ((int)threadIdx.x < half) values[threadIdx.x] = combine(values[threadIdx.x], values[threadIdx.x + half]);
    __syncthreads();
  }
  const uint64_t result = values[0];
  __syncthreads();
  return result;
}

__device__ inline uint64_t block_sum(uint64_t value) { return block_all(value, Add()); }
__device__ inline uint64_t block_least(uint64_t value) { return block_all(value, Least()); }

// The largest value; of -0 and +0 it gives +0.
__device__ inline float block_max(float value) {
  return key_to_float(~(uint32_t)block_least((uint32_t)~ts_order_key(value)));
}

// The sum of the values of all lower threads (Hillis and Steele's scan).
__device__ inline uint64_t block_before(uint64_t value) {
  __shared__ uint64_t values[kThreads];
  values[threadIdx.x] = value;
  __syncthreads();
  for (int step = 1; step < kThreads; step *= 2) {
    const uint64_t other = (int)threadIdx.x >= step ? values[threadIdx.x - step] : 0;
    __syncthreads();
    values[threadIdx.x] += other;
    __syncthreads();
  }
  const uint64_t result = values[threadIdx.x] - value;
  __syncthreads();
  return result;
}

__device__ inline float load_one(const void *row, int64_t i, int32_t dtype) {
  if (dtype == TS_F32) return ((const float *)row)[i];
  const uint16_t half = ((const uint16_t *)row)[i];
  return dtype == TS_BF16 ? ts_bf16_to_float(half) : ts_f16_to_float(half);
}

}  // namespace
