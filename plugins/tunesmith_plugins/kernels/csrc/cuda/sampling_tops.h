// The likeliest tokens of a row with their log-probabilities, in order.
#pragma once

#include "sampling_search.h"

namespace {

// Equals by id; so those at -inf come last, in order of ids. They are sorted in the place of the ids themselves, if there is
// more than a search has room for.
__device__ TS_NOINLINE inline void tops_of(Row &row, int64_t count, int64_t *ids, float *logps) {
  const uint64_t total = row.max < infinity() ? row.total() : 0;
  const Border border = kth_border(row, count);
  const auto upside_down = [](uint32_t key, uint32_t id) { return (uint64_t)(uint32_t)~key << 32 | id; };
  uint64_t *items = (uint64_t *)ids;
  if (row.listed) {
    items = list_room()->items;
    const int here = border.place + (int)threadIdx.x, size = row.listed - border.place;
    const uint64_t item = here < row.listed ? items[here] : 0;
    __syncthreads();
    if (here < row.listed) items[threadIdx.x] = upside_down((uint32_t)(item >> 32), (uint32_t)item);
    __syncthreads();
    block_sort(items, size);
  } else {
    const uint32_t last = border.key;
    const int64_t part = (row.vocab + kThreads - 1) / kThreads, begin = threadIdx.x * part;
    const int64_t end = begin + part < row.vocab ? begin + part : row.vocab;
    uint64_t own_above = 0, own_ties = 0, all_above;
    for (int64_t i = begin; i < end; ++i) {
      const uint32_t key = Row::key_of(row.z[i]);
      own_above += key > last;
      own_ties += key == last;
    }
    uint64_t above = block_before(own_above, &all_above), tie = block_before(own_ties) + all_above;
    for (int64_t i = begin; i < end; ++i) {
      const uint32_t key = Row::key_of(row.z[i]);
      if (key > last) items[above++] = upside_down(key, (uint32_t)i);
      if (key == last && tie < (uint64_t)count) items[tie++] = upside_down(key, (uint32_t)i);
    }
    __syncthreads();
    block_sort(items, count);
  }
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    const uint64_t item = items[i];
    const float z = key_to_float(~(uint32_t)(item >> 32));
    ids[i] = (int64_t)(uint32_t)item;
    if (!(row.max < infinity())) logps[i] = not_a_number();
    else logps[i] = z > -infinity() ? row.logp(z, total) : -infinity();
  }
  __syncthreads();
}

__device__ inline void no_tops(int64_t count, int64_t *ids, float *logps) {
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    ids[i] = -1;
    logps[i] = not_a_number();
  }
}

}  // namespace
