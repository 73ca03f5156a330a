// The likeliest tokens of a row with their log-probabilities, in order.
#pragma once

#include "sampling_row.h"
#include "sampling_sort.h"

namespace {

// Equals by id; so those at -inf come last, in order of ids. They are sorted in the place of the ids themselves.
__device__ inline void tops_of(const Row &row, int64_t count, int64_t *ids, float *logps) {
  const uint64_t total = row.max < infinity() ? row.total() : 0;
  const uint32_t last = row.kth_key(count);
  uint64_t *items = (uint64_t *)ids;
  uint64_t own_above = 0, own_ties = 0;
  for (int64_t i = row.begin(); i < row.end(); ++i) {
    const uint32_t key = row.key(i);
    own_above += key > last;
    own_ties += key == last;
  }
  uint64_t above = block_before(own_above), tie = block_before(own_ties) + block_sum(own_above);
  for (int64_t i = row.begin(); i < row.end(); ++i) {
    const uint32_t key = row.key(i);
    const uint64_t item = (uint64_t)(uint32_t)~key << 32 | (uint64_t)i;
    if (key > last) items[above++] = item;
    if (key == last && tie < (uint64_t)count) items[tie++] = item;
  }
  __syncthreads();
  block_sort(items, count);
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    const uint64_t item = items[i];
    const float z = key_to_float(~(uint32_t)(item >> 32));
    ids[i] = (int64_t)(uint32_t)item;
    if (!(row.max < infinity())) logps[i] = not_a_number();
    else logps[i] = z > -infinity() ? row.logp(z, total) : -infinity();
  }
}

__device__ inline void no_tops(int64_t count, int64_t *ids, float *logps) {
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    ids[i] = -1;
    logps[i] = not_a_number();
  }
}

}  // namespace
