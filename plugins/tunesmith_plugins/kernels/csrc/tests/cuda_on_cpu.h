// Enough of CUDA to run the kernels on a CPU: a thread of the block is a fiber, which runs until it waits for the others;
// the blocks of a grid run one after the other. ThreadSanitizer takes fibers for threads that only barriers put in order,
// and so finds races. It checks the kernels' logic where no CUDA device is at hand; it says nothing about a device.
#pragma once

#include <math.h>
#include <stdlib.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <memory>
#include <vector>

#if defined(__has_feature)
#define TS_FEATURE(name) __has_feature(name)
#else
#define TS_FEATURE(name) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || TS_FEATURE(address_sanitizer)
#define TS_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__) || TS_FEATURE(thread_sanitizer)
#define TS_TSAN
#include <sanitizer/tsan_interface.h>
#define TS_UNSEEN __attribute__((noinline, no_sanitize("thread")))  // what changes from fiber to fiber is no race
#else
#define TS_UNSEEN
#endif

#define __global__ static
#define __device__
#define __shared__ static
#define __forceinline__ inline
#define TS_UNROLL(times)
#define TS_BOUNDS(threads)
#define TS_NOINLINE
#define TS_PARAMETER const

constexpr int kMostThreads = 64;
constexpr size_t kFiberStack = 256 << 10;

struct Fiber {
  ucontext_t context;
  void *stack;
  size_t stack_size;
  unsigned thread, block;
  bool done;
  void *fake_stack, *sanitizer;
};
inline Fiber fibers[kMostThreads], host;  // of the block, and whoever launched it
inline unsigned fiber_count = 0;
inline Fiber *running = &host;

struct ThreadIndex {
  TS_UNSEEN operator unsigned() const { return running->thread; }
};
struct BlockIndex {
  TS_UNSEEN operator unsigned() const { return running->block; }
};
template <typename Index>
struct OneDimension {
  Index x;
};
inline OneDimension<ThreadIndex> threadIdx;
inline OneDimension<BlockIndex> blockIdx;

TS_UNSEEN inline void switch_to(Fiber *next) {
  Fiber *from = running;
  running = next;
#if defined(TS_ASAN)
  __sanitizer_start_switch_fiber(&from->fake_stack, next->stack, next->stack_size);
#endif
#if defined(TS_TSAN)
  __tsan_switch_to_fiber(next->sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
  swapcontext(&from->context, &next->context);
#if defined(TS_ASAN)
  __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
#endif
}

// Lets the next thread of the block run; the host, once none is left.
TS_UNSEEN inline void yield_to_next() {
  for (unsigned i = 1; i < fiber_count; ++i) {
    Fiber *next = &fibers[(running->thread + i) % fiber_count];
    if (!next->done) return switch_to(next);
  }
  if (running->done) switch_to(&host);
}

class Barrier {
 public:
  explicit Barrier(int count) : count_(count) {}
  TS_UNSEEN void wait() {
    const uint64_t round = round_;
#if defined(TS_TSAN)
    __tsan_release(&rounds_[round % 2]);
#endif
    if (++waiting_ == count_) {
      waiting_ = 0;
      ++round_;
    }
    while (round == round_) yield_to_next();
#if defined(TS_TSAN)
    // Of this round alone: who leaves last must not seem to have waited for what others did since they left.
    __tsan_acquire(&rounds_[round % 2]);
#endif
  }
  // Tells ThreadSanitizer that what was done before is done before what comes now.
  TS_UNSEEN void order() {
#if defined(TS_TSAN)
    __tsan_acquire(&order_);
    __tsan_release(&order_);
#endif
  }

 private:
  const int count_;
  int waiting_ = 0;
  uint64_t round_ = 0;
  uint64_t order_ = 0, rounds_[2] = {};
};
inline Barrier *block_barrier = nullptr;
inline void __syncthreads() { block_barrier->wait(); }

inline unsigned long long atomicAdd(unsigned long long *at, unsigned long long value) {
  return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}
inline uint32_t atomicAdd(uint32_t *at, uint32_t value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }
inline uint32_t atomicOr(uint32_t *at, uint32_t value) { return __atomic_fetch_or(at, value, __ATOMIC_RELAXED); }

inline int32_t atomicAdd(int32_t *at, int32_t value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }
template <typename T>
T __ldcg(const T *at) {  // past the first cache, of which there is none here
  return *(const volatile T *)at;
}
inline void ask_for(const void *line) { (void)*(const volatile char *)line; }  // must be there, as for a read
inline void __threadfence() {}  // blocks run one after the other

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};

// A half of the four bytes of b, as signed numbers, times the two signed halves of a.
inline int32_t bytes_by_halves(int32_t a, int32_t b, int32_t c, int first) {
  for (int i = 0; i < 2; ++i) c += (int32_t)(int16_t)((uint32_t)a >> (16 * i)) * (int8_t)((uint32_t)b >> (8 * (first + i)));
  return c;
}
inline int32_t __dp2a_lo(int32_t a, int32_t b, int32_t c) { return bytes_by_halves(a, b, c, 0); }
inline int32_t __dp2a_hi(int32_t a, int32_t b, int32_t c) { return bytes_by_halves(a, b, c, 2); }
// Four of the eight bytes of x and y, by the digits of `which`.
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t which) {
  const uint64_t eight = (uint64_t)y << 32 | x;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) result |= (uint32_t)(eight >> (8 * (which >> (4 * i) & 7)) & 255) << (8 * i);
  return result;
}

constexpr int kMostWarps = 8;
inline std::vector<Barrier> warp_barriers;

// The value of another lane of the warp, whose number is taken modulo 32.
inline uint64_t ts_shuffle(uint64_t value, unsigned lane) {
  static uint64_t values[kMostWarps][32];
  const unsigned warp = threadIdx.x / 32;
  values[warp][threadIdx.x % 32] = value;
  warp_barriers[warp].wait();
  const uint64_t other = values[warp][lane % 32 % fiber_count];
  warp_barriers[warp].wait();
  return other;
}

// The lanes of a warp lay down their operands, and each adds up its own four results.
inline void mma_m16n8k32(int32_t (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  static uint32_t operands[kMostWarps][32][6];
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t own[6] = {a0, a1, a2, a3, b0, b1};
  memcpy(operands[warp][lane], own, sizeof own);
  warp_barriers[warp].wait();
  const auto byte = [&](unsigned from, unsigned word, unsigned i) { return (int32_t)(int8_t)(operands[warp][from][word] >> (8 * i)); };
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (unsigned k = 0; k < 32; ++k) {
      const unsigned there = k % 16 / 4;
      c[i] += byte(row % 8 * 4 + there, row / 8 + k / 16 * 2, k % 4) * byte(column * 4 + there, 4 + k / 16, k % 4);
    }
  }
  warp_barriers[warp].wait();
}

// Every lane lays down its value and reads those of the others; all lanes of a warp take part.
template <typename Read>
uint32_t among_lanes(uint32_t value, Read read) {
  static uint32_t values[kMostWarps][32];
  const unsigned warp = threadIdx.x / 32;
  values[warp][threadIdx.x % 32] = value;
  warp_barriers[warp].wait();
  const uint32_t found = read(values[warp]);
  warp_barriers[warp].wait();
  return found;
}
inline uint32_t __reduce_max_sync(unsigned, uint32_t value) {
  return among_lanes(value, [](const uint32_t *values) {
    uint32_t most = 0;
    for (int i = 0; i < 32; ++i) most = values[i] > most ? values[i] : most;
    return most;
  });
}
inline uint32_t __shfl_xor_sync(unsigned, uint32_t value, int lanes) {
  const unsigned other = threadIdx.x % 32 ^ (unsigned)lanes;
  return among_lanes(value, [other](const uint32_t *values) { return values[other]; });
}

typedef int cudaError_t;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char *cudaGetErrorString(cudaError_t) { return ""; }
typedef void *cudaStream_t;
constexpr unsigned cudaHostAllocPortable = 1, cudaHostAllocMapped = 2;
inline cudaError_t cudaHostAlloc(void **memory, size_t size, unsigned) { return *memory = malloc(size), cudaSuccess; }
inline cudaError_t cudaFreeHost(void *memory) { return free(memory), cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int *device) { return *device = 0, cudaSuccess; }

inline const std::function<void()> *launched = nullptr;  // what every thread does in every block
inline unsigned launched_blocks = 0;

TS_UNSEEN inline void begin_block(unsigned index) { running->block = index; }
TS_UNSEEN inline void begin_launch() { block_barrier->order(); }  // after what the host did
TS_UNSEEN inline void end_launch() {
  block_barrier->order();  // before what the host does
  running->done = true;
  yield_to_next();
}

inline void run_fiber() {
#if defined(TS_ASAN)
  const void *bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  if (running == &fibers[0]) host.stack = (void *)bottom, host.stack_size = size;
#endif
  for (;;) {  // a launch a turn
    begin_launch();
    for (unsigned index = 0; index < launched_blocks; ++index) {
      begin_block(index);
      (*launched)();
      __syncthreads();
    }
    end_launch();
  }
}

inline void run_grid(unsigned grid, int threads, const std::function<void()> &kernel) {
  static std::unique_ptr<char[]> stacks(new char[kMostThreads * kFiberStack]);
  Barrier barrier(threads);
  block_barrier = &barrier;
  warp_barriers.clear();
  for (int warp = 0; warp * 32 < threads; ++warp) warp_barriers.emplace_back(threads < 32 ? threads : 32);
  launched = &kernel;
  launched_blocks = grid;
  for (; fiber_count < (unsigned)threads; ++fiber_count) {
    Fiber &fiber = fibers[fiber_count];
    fiber.stack = stacks.get() + fiber_count * kFiberStack;
    fiber.stack_size = kFiberStack;
    fiber.thread = fiber_count;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kFiberStack;
    makecontext(&fiber.context, run_fiber, 0);
#if defined(TS_TSAN)
    host.sanitizer = __tsan_get_current_fiber();
    fiber.sanitizer = __tsan_create_fiber(0);
#endif
  }
  for (int thread = 0; thread < threads; ++thread) fibers[thread].done = false;
  barrier.order();
  switch_to(&fibers[0]);
  barrier.order();
}
#define TS_LAUNCH(kernel, grid, stream, ...) ((void)(stream), run_grid(grid, kThreads, [&] { kernel(__VA_ARGS__); }))
