// Sorting by a block of threads.
#pragma once

#include "block.h"

namespace {

// Batcher's bitonic sort with all comparisons one way, so that it needs no power of two: what lies behind the end would be
// larger than everything, and never moves.
template <typename Item>
__device__ void block_sort(Item *items, int64_t count) {
  for (int64_t size = 2; size < 2 * count; size *= 2) {
    for (int64_t half = size / 2; half > 0; half /= 2) {
      for (int64_t i = threadIdx.x;; i += kThreads) {
        const int64_t begin = i / half * (2 * half), low = begin + i % half;
        if (low >= count) break;
        const int64_t high = 2 * half == size ? begin + size - 1 - i % half : low + half;
        if (high >= count || items[low] <= items[high]) continue;
        const Item larger = items[low];
        items[low] = items[high];
        items[high] = larger;
      }
      __syncthreads();
    }
  }
}

}  // namespace
