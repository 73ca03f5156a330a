// What a block of threads does together. Included by CUDA units, and by the test that runs them on CPU threads.
#pragma once

#if defined(TS_CUDA_ON_CPU)
#include "cuda_on_cpu.h"
#else
#include <cuda_runtime.h>
#include <stdint.h>
#define TS_PRAGMA(text) _Pragma(#text)
#define TS_UNROLL(times) TS_PRAGMA(unroll times)
#define TS_BOUNDS(threads) __launch_bounds__(threads, 1)
#define TS_NOINLINE __noinline__
#define TS_PARAMETER const __grid_constant__
// The value of another lane of the warp, whose number is taken modulo 32.
static __device__ __forceinline__ uint64_t ts_shuffle(uint64_t value, unsigned lane) {
  return __shfl_sync(0xffffffffu, (unsigned long long)value, (int)(lane % 32));
}
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

constexpr int kLanesOfWarp = kThreads < 32 ? kThreads : 32;
constexpr int kBlockWarps = kThreads / kLanesOfWarp;
static_assert(kThreads % kLanesOfWarp == 0 && kBlockWarps <= kLanesOfWarp, "a warp takes a value of every warp");

struct Add {
  static constexpr uint64_t kNone = 0;
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a + b; }
};
struct Least {
  static constexpr uint64_t kNone = ~(uint64_t)0;
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a < b ? a : b; }
};

// The combination of every lane's value, given to all lanes of a warp.
template <typename Combine>
__device__ uint64_t warp_all(uint64_t value, Combine combine) {
  const unsigned lane = threadIdx.x % kLanesOfWarp;
  TS_UNROLL(5)
  for (unsigned step = 1; step < (unsigned)kLanesOfWarp; step *= 2) value = combine(value, ts_shuffle(value, lane ^ step));
  return value;
}

// The sum of the values of all lower lanes.
__device__ inline uint64_t warp_before(uint64_t value) {
  const unsigned lane = threadIdx.x % kLanesOfWarp;
  uint64_t sum = value;
  TS_UNROLL(5)
  for (unsigned step = 1; step < (unsigned)kLanesOfWarp; step *= 2) {
    const uint64_t other = ts_shuffle(sum, lane - step);
    if (lane >= step) sum += other;
  }
  return sum - value;
}

// A number a warp. One for all that is done with it, since they take turns.
__device__ inline uint64_t *warp_room() {
  __shared__ uint64_t room[kLanesOfWarp];
  return room;
}

// What many places call is no part of each: a kernel reads its code once, and that takes time.

// The combination of every thread's value, given to all of them; integers, so the order does not matter.
template <typename Combine>
__device__ uint64_t block_all(uint64_t value, Combine combine) {
  uint64_t *room = warp_room();
  const int lane = (int)threadIdx.x % kLanesOfWarp;
  value = warp_all(value, combine);
  if (lane == 0) room[threadIdx.x / kLanesOfWarp] = value;
  __syncthreads();
  value = warp_all(lane < kBlockWarps ? room[lane] : Combine::kNone, combine);
  __syncthreads();
  return value;
}

__device__ TS_NOINLINE inline uint64_t block_sum(uint64_t value) { return block_all(value, Add()); }
__device__ TS_NOINLINE inline uint64_t block_least(uint64_t value) { return block_all(value, Least()); }

// The largest value; of -0 and +0 it gives +0.
__device__ TS_NOINLINE inline float block_max(float value) {
  return key_to_float(~(uint32_t)block_least((uint32_t)~ts_order_key(value)));
}

// The sum of the values of all lower threads, and *all of all.
__device__ TS_NOINLINE inline uint64_t block_before(uint64_t value, uint64_t *all = nullptr) {
  uint64_t *room = warp_room();
  const int lane = (int)threadIdx.x % kLanesOfWarp, warp = (int)threadIdx.x / kLanesOfWarp;
  const uint64_t before = warp_before(value);
  if (lane == kLanesOfWarp - 1) room[warp] = before + value;
  __syncthreads();
  const uint64_t own = lane < kBlockWarps ? room[lane] : 0, warps_before = warp_before(own);
  if (all) *all = ts_shuffle(warps_before + own, kLanesOfWarp - 1);
  __syncthreads();
  return before + ts_shuffle(warps_before, (unsigned)warp);
}

__device__ inline float load_one(const void *row, int64_t i, int32_t dtype) {
  if (dtype == TS_F32) return ((const float *)row)[i];
  const uint16_t half = ((const uint16_t *)row)[i];
  return dtype == TS_BF16 ? ts_bf16_to_float(half) : ts_f16_to_float(half);
}

}  // namespace
