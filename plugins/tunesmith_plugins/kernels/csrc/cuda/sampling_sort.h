// Sorting by a block of threads.
#pragma once

#include "block.h"

namespace {

// Batcher's bitonic sort with all comparisons one way, so that it needs no power of two: what lies behind the end would be
// larger than everything, and never moves.
template <typename Item>
__device__ TS_NOINLINE void block_sort(Item *items, int64_t number) {
  const int count = (int)number;
  for (int bits = 1; (1 << bits) < 2 * count; ++bits) {
    for (int bit = bits - 1; bit >= 0; --bit) {
      const int half = 1 << bit;
      for (int i = (int)threadIdx.x;; i += kThreads) {
        const int within = i & (half - 1), begin = (i - within) * 2, low = begin + within;
        if (low >= count) break;
        const int high = bit == bits - 1 ? begin + 2 * half - 1 - within : low + half;
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
