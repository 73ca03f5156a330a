// Mirostat's first algorithm: top-k with the k at which a Zipf law has the surprise asked for.
#pragma once

#include "sampling_sort.h"
#include "sampling_ties.h"
#include "zipf.h"

namespace {

// The likeliest tokens in order, some at a time so that they fit into the room of a block.
class Ranked {
 public:
  __device__ explicit Ranked(Row &row) : row_(row), keys_((unsigned long long *)bucket_room()) {}

  // Goes on to those from rank `first` (0 is the likeliest) to before first + size, which is at most kBuckets; everything
  // before was asked for in turn, or nothing yet.
  __device__ void go_on(int64_t first, int64_t size) {
    __shared__ uint32_t next;
    const uint32_t last = kth_key(row_, first + size);
    if (threadIdx.x == 0) next = 0;
    __syncthreads();
    uint64_t reached = 0;
    row_.each([&](int, float value) {
      const uint32_t key = Row::key_of(value);
      reached += key >= before_;
      if (last < key && key < before_) keys_[atomicAdd(&next, 1u)] = (uint32_t)~key;
    });
    reached = block_sum(reached);
    const int64_t between = (int64_t)next, left = (int64_t)reached - first;  // `left` of those at before_ have not been seen
    for (int64_t i = between + threadIdx.x; i < size; i += kThreads)
      keys_[i] = (uint32_t)~(i - between < left ? before_ : last);
    __syncthreads();
    block_sort(keys_, size);
    before_ = last;
  }

  __device__ float value(int64_t place) const { return key_to_float(~(uint32_t)keys_[place]); }

 private:
  Row &row_;
  unsigned long long *const keys_;  // upside down, so that the likeliest comes first
  uint32_t before_ = ~(uint32_t)0;  // the last key so far
};

// Products are worked out side by side; one thread adds them up, in order.
__device__ inline double zipf_k(Row &row, int64_t count, double bits) {
  __shared__ double sums[2];
  double *weighted_parts = (double *)list_room()->items, *squares_parts = (double *)list_room()->z;  // no search is under way
  Ranked ranked(row);
  double weighted = 0, squares = 0;
  float last = row.max;  // of the part before
  for (int64_t first = 0; first < count; first += kBuckets) {
    const int64_t size = count - first < kBuckets ? count - first : kBuckets;
    ranked.go_on(first, size);
    for (int64_t begin = 0; begin < size; begin += kThreads) {
      const int64_t place = begin + threadIdx.x, rank = first + place;
      if (place < size && rank > 0) {
        const double t = ts_zipf_step(rank), above = place ? ranked.value(place - 1) : last;
        weighted_parts[threadIdx.x] = t * (above - (double)ranked.value(place));
        squares_parts[threadIdx.x] = t * t;
      }
      __syncthreads();
      if (threadIdx.x == 0) {
        for (int64_t i = first + begin == 0; i < kThreads && begin + i < size; ++i) {
          weighted = weighted + weighted_parts[i];
          squares = squares + squares_parts[i];
        }
      }
      __syncthreads();
    }
    last = ranked.value(size - 1);
    __syncthreads();
  }
  if (threadIdx.x == 0) sums[0] = weighted, sums[1] = squares;
  __syncthreads();
  return ts_zipf_k(sums[0], sums[1], row.vocab, bits);
}

__device__ TS_NOINLINE inline void mirostat(Row &row, double bits, double candidates) {
  const int64_t finite = row.finite();
  const double k = zipf_k(row, candidates < (double)finite ? (int64_t)candidates : finite, bits);
  if (k >= (double)row.vocab) return;
  const uint32_t border = kth_key(row, (int64_t)k);
  // All of the likeliest stay.
  if (border == ts_order_key(row.max)) return row.keep(border, 0, kAllTies);
  keep_low(row, border, (int64_t)k);
}

}  // namespace
