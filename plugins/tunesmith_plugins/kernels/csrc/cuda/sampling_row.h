// A row of logits in device memory, and what a block of threads can ask of it. A token that was dropped is at -inf: it
// weighs nothing, and no sum needs to know of it.
#pragma once

#include "block.h"

namespace {

constexpr int kBuckets = 2048;

__device__ inline float infinity() { return bits_to_float(0x7f800000u); }
__device__ inline float not_a_number() { return bits_to_float(0x7fc00000u); }

// Room for sums by digits of a key: one for all searches of a kernel, since they take turns.
__device__ inline unsigned long long *bucket_room() {
  __shared__ unsigned long long buckets[kBuckets];
  return buckets;
}

// Finds the smallest key(i) at which the sum of measure(j) over all j with key(j) up to it exceeds limit; *below is the sum
// without those of that very key. The sum over all must exceed the limit. Counts by digits of the key, the highest first.
template <typename Key, typename Measure>
__device__ uint32_t key_beyond(int64_t count, uint64_t limit, Key key, Measure measure, uint64_t *below) {
  __shared__ uint32_t found;
  __shared__ uint64_t sum;
  unsigned long long *buckets = bucket_room();
  const int shifts[] = {21, 10, 0}, widths[] = {11, 11, 10};
  uint32_t prefix = 0;
  uint64_t running = 0;
  for (int level = 0; level < 3; ++level) {
    const int shift = shifts[level], high = shift + widths[level], size = 1 << widths[level];
    for (int b = threadIdx.x; b < size; b += kThreads) buckets[b] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < count; i += kThreads) {
      const uint32_t k = key(i);
      if (level == 0 || k >> high == prefix >> high) atomicAdd(buckets + ((k >> shift) & (size - 1)), (unsigned long long)measure(i));
    }
    __syncthreads();
    // Each thread adds up some neighbours; the one in whose sum it happens looks at them one by one.
    const int some = size / kThreads, begin = (int)threadIdx.x * some;
    uint64_t own = 0;
    for (int b = begin; b < begin + some; ++b) own += buckets[b];
    uint64_t before = running + block_before(own);
    if (before <= limit && limit < before + own) {
      int b = begin;
      while (before + buckets[b] <= limit) before += buckets[b++];
      found = (uint32_t)b;
      sum = before;
    }
    __syncthreads();
    prefix |= found << shift;
    running = sum;
    __syncthreads();
  }
  *below = running;
  return prefix;
}

struct Row {
  float *z;
  int64_t vocab;
  double scale;
  float max;

  __device__ uint32_t key(int64_t i) const { return ts_order_key(z[i]); }
  __device__ uint64_t weight_of(float value) const { return ts_weight(ts_exp(value - max), scale); }
  __device__ uint64_t weight(int64_t i) const { return weight_of(z[i]); }
  __device__ uint64_t depth_of(float value) const {
    const float d = value - max;
    return ts_depth(d, ts_exp(d), scale);
  }

  __device__ float maximum() const {
    float best = -infinity();
    for (int64_t i = threadIdx.x; i < vocab; i += kThreads) best = z[i] > best ? z[i] : best;
    return block_max(best);
  }

  __device__ uint64_t total() const {
    uint64_t sum = 0;
    for (int64_t i = threadIdx.x; i < vocab; i += kThreads) sum += weight(i);
    return block_sum(sum);
  }

  // How many tokens are left.
  __device__ int64_t finite() const {
    uint64_t count = 0;
    for (int64_t i = threadIdx.x; i < vocab; i += kThreads) count += z[i] > -infinity();
    return (int64_t)block_sum(count);
  }

  // The key of the k-th largest value, equals counted one by one.
  __device__ uint32_t kth_key(int64_t k) const {
    uint64_t below;
    return key_beyond(
        vocab, (uint64_t)(vocab - k), [this](int64_t i) { return key(i); }, [](int64_t) { return (uint64_t)1; }, &below);
  }

  template <typename Goes>
  __device__ void drop_if(Goes goes) const {
    for (int64_t i = threadIdx.x; i < vocab; i += kThreads) {
      if (goes(z[i])) z[i] = -infinity();
    }
    __syncthreads();
  }

  // The tokens that one thread looks at where their order matters.
  __device__ int64_t begin() const {
    const int64_t at = threadIdx.x * ((vocab + kThreads - 1) / kThreads);
    return at < vocab ? at : vocab;
  }
  __device__ int64_t end() const {
    const int64_t at = (threadIdx.x + 1) * ((vocab + kThreads - 1) / kThreads);
    return at < vocab ? at : vocab;
  }

  // Keeps every token above the threshold, and of those at it, in order of ids, the ones from `first` to before `last`.
  __device__ void keep(uint32_t threshold, uint64_t first, uint64_t last) const {
    uint64_t own = 0;
    for (int64_t i = begin(); i < end(); ++i) own += key(i) == threshold;
    uint64_t rank = block_before(own);
    for (int64_t i = begin(); i < end(); ++i) {
      const uint32_t here = key(i);
      bool stays = here > threshold;
      if (here == threshold) {
        stays = first <= rank && rank < last;
        ++rank;
      }
      if (!stays) z[i] = -infinity();
    }
    __syncthreads();
  }

  __device__ int64_t first_maximum() const {
    uint64_t first = (uint64_t)vocab;
    for (int64_t i = vocab - 1 - (int64_t)threadIdx.x; i >= 0; i -= kThreads) {
      if (z[i] == max) first = (uint64_t)i;
    }
    return (int64_t)block_least(first);
  }

  __device__ int64_t draw(uint64_t bits) const {
    const uint64_t target = ts_mulhi(bits, total());
    uint64_t own = 0;
    for (int64_t i = begin(); i < end(); ++i) own += weight(i);
    uint64_t running = block_before(own), token = (uint64_t)vocab;
    if (running <= target && target < running + own) {
      for (int64_t i = begin(); i < end(); ++i) {
        running += weight(i);
        if (running > target) {
          token = (uint64_t)i;
          break;
        }
      }
    }
    return (int64_t)block_least(token);
  }

  // value is this row's, or was before something was dropped. +0 for -0, so that its log-probability has the CPU's sign.
  __device__ float logp(float value, uint64_t of_total) const { return ts_logp(value + 0.0f, max, of_total, scale); }
};

}  // namespace
