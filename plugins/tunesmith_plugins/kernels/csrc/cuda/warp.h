// What a warp does together, and a block by its warps: one step where the trees of block.h take ten.
#pragma once

#include "block.h"

namespace {

constexpr int kWarps = kThreads / 32;

// The largest value of the block's threads, given to all of them.
__device__ inline uint32_t block_most(uint32_t value) {
  __shared__ uint32_t found[kWarps];
  value = __reduce_max_sync(~0u, value);
  if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = value;
  __syncthreads();
  for (int warp = 0; warp < kWarps; ++warp) value = found[warp] > value ? found[warp] : value;
  __syncthreads();
  return value;
}

}  // namespace
