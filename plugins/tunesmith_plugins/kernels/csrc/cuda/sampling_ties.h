// Top-k and top-p with other rules for equal tokens at the border of what stays.
#pragma once

#include "sampling_truncations.h"

namespace {

// How many tokens are above a border, and how many at it.
struct Count {
  uint64_t above, at;
};

__device__ TS_NOINLINE inline Count count_from(const Row &row, uint32_t border) {
  Count found = {0, 0};
  row.each([&](int, float value) {
    const uint32_t key = Row::key_of(value);
    found.above += key > border;
    found.at += key == border;
  });
  found.above = block_sum(found.above);
  found.at = block_sum(found.at);
  return found;
}

// The k likeliest, of what ties with the last of them those with the lowest ids.
__device__ inline void keep_low(const Row &row, uint32_t border, int64_t k) {
  row.keep(border, 0, (uint64_t)k - count_from(row, border).above);
}

__device__ TS_NOINLINE inline void top_k_low(Row &row, double k) {
  if (k < 1 || k >= (double)row.vocab) return;
  keep_low(row, kth_key(row, (int64_t)k), (int64_t)k);
}

// second: how many tokens stay at least, and the rule.
__device__ TS_NOINLINE inline void top_p_ties(Row &row, double p, const double *second) {
  if (p >= 1 || second[0] >= (double)row.vocab) return;
  const uint64_t fewest = (uint64_t)second[0];
  const int32_t rule = (int32_t)second[1];
  const Cut cut = top_p_cut(row, p);
  uint32_t border = cut.border.key;
  uint64_t go = cut.go;
  Count count = count_from(row, border);
  if (count.above + count.at - go < fewest) {
    border = kth_key(row, (int64_t)fewest);
    count = count_from(row, border);
    go = count.above + count.at - fewest;
  }
  if (rule == TS_TIES_HIGH) return row.keep(border, go, kAllTies);
  row.keep(border, 0, rule == TS_TIES_LOW ? count.at - go : kAllTies);
}

}  // namespace
