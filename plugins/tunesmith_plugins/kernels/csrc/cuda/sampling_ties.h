// Top-k and top-p with other rules for equal tokens at the border of what stays.
#pragma once

#include "sampling_truncations.h"

namespace {

// How many tokens are above a border, and how many at it.
struct Count {
  uint64_t above, at;
};

__device__ inline Count count_from(const Row &row, uint32_t border) {
  Count found = {0, 0};
  for (int64_t i = threadIdx.x; i < row.vocab; i += kThreads) {
    const uint32_t key = row.key(i);
    found.above += key > border;
    found.at += key == border;
  }
  found.above = block_sum(found.above);
  found.at = block_sum(found.at);
  return found;
}

// The k likeliest, of what ties with the last of them those with the lowest ids.
__device__ inline void keep_low(const Row &row, uint32_t border, int64_t k) {
  row.keep(border, 0, (uint64_t)k - count_from(row, border).above);
}

__device__ inline void top_k_low(const Row &row, double k) {
  if (k < 1 || k >= (double)row.vocab) return;
  keep_low(row, row.kth_key((int64_t)k), (int64_t)k);
}

// second: how many tokens stay at least, and the rule.
__device__ inline void top_p_ties(const Row &row, double p, const double *second) {
  if (p >= 1 || second[0] >= (double)row.vocab) return;
  const uint64_t fewest = (uint64_t)second[0];
  const int32_t rule = (int32_t)second[1];
  Border border = top_p_border(row, p);
  Count count = count_from(row, border.key);
  if (count.above + count.at - border.go < fewest) {
    border.key = row.kth_key((int64_t)fewest);
    count = count_from(row, border.key);
    border.go = count.above + count.at - fewest;
  }
  if (rule == TS_TIES_HIGH) return row.keep(border.key, border.go, kAllTies);
  row.keep(border.key, 0, rule == TS_TIES_LOW ? count.at - border.go : kAllTies);
}

}  // namespace
