// The watermark: a part of the vocabulary that depends on the ids before is made likelier.
#pragma once

#include "green.h"
#include "sampling_row.h"

namespace {

// ids: the key, and how many of the `length` ids before decide.
__device__ inline void watermark(const Row &row, const Row &processed, const int64_t *ids, const int64_t *history, int64_t length,
                                 double gamma, float delta) {
  const int64_t key = ids[0], context = ids[1];
  if (length < context) return;
  const uint64_t stream = ts_watermark_stream(key, history + length - context, context), bound = ts_green_bound(gamma);
  for (int64_t i = threadIdx.x; i < row.vocab; i += kThreads) {
    if (!ts_is_green(key, stream, bound, i)) continue;
    row.z[i] = row.z[i] + delta;
    processed.z[i] = processed.z[i] + delta;
  }
  __syncthreads();
}

}  // namespace
