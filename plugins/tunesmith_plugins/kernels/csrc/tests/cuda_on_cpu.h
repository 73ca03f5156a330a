// Enough of CUDA to run the kernels on CPU threads: a thread of the block is a thread, the blocks of a grid run one
// after the other. It checks the kernels' logic where no CUDA device is at hand; it says nothing about a device.
#pragma once

#include <stdint.h>

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#define __global__ static
#define __device__
#define __shared__ static
#define __forceinline__ inline

struct Index {
  unsigned x;
};
inline thread_local Index threadIdx, blockIdx;

class Barrier {
 public:
  explicit Barrier(int count) : count_(count) {}
  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const uint64_t round = round_;
    if (++waiting_ == count_) {
      waiting_ = 0;
      ++round_;
      all_here_.notify_all();
    } else {
      all_here_.wait(lock, [&] { return round != round_; });
    }
  }

 private:
  const int count_;
  int waiting_ = 0;
  uint64_t round_ = 0;
  std::mutex mutex_;
  std::condition_variable all_here_;
};
inline Barrier *block_barrier = nullptr;
inline void __syncthreads() { block_barrier->wait(); }

inline unsigned long long atomicAdd(unsigned long long *at, unsigned long long value) {
  return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}
inline uint32_t atomicOr(uint32_t *at, uint32_t value) { return __atomic_fetch_or(at, value, __ATOMIC_RELAXED); }

typedef int cudaError_t;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char *cudaGetErrorString(cudaError_t) { return ""; }

template <typename Kernel>
void run_grid(unsigned grid, int threads, Kernel kernel) {
  Barrier barrier(threads);
  block_barrier = &barrier;
  std::vector<std::thread> block;
  for (int thread = 0; thread < threads; ++thread) {
    block.emplace_back([&, thread] {
      threadIdx.x = (unsigned)thread;
      for (unsigned index = 0; index < grid; ++index) {
        blockIdx.x = index;
        kernel();
        __syncthreads();
      }
    });
  }
  for (std::thread &thread : block) thread.join();
}
#define TS_LAUNCH(kernel, grid, stream, ...) run_grid(grid, kThreads, [&] { kernel(__VA_ARGS__); })
