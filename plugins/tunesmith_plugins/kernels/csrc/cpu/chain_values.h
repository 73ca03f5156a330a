// A look at every value that is left of a row, in whatever form the row is.
#pragma once

#include <math.h>

#include <algorithm>

#include "chain_row.h"
#include "load.h"

// Calls take(values, count) with all values that are left, some at a time; -inf among them stands for nothing.
template <typename Take>
void ChainRow::over_values(Take take) {
  if (form_ != kDense) {
    for (int64_t at = 0; at < n_; at += kBlock) take(z_.get() + at, std::min(kBlock, n_ - at));
    return;
  }
  float z[kBlock];
  for (int64_t begin = 0; begin < vocab_; begin += kBlock) {
    const int64_t size = std::min(kBlock, vocab_ - begin);
    ts_load_row((const char *)source_ + begin * ts_item_size(args_->dtype), size, args_->dtype, z);
    for (int32_t t = 0; t < dense_divisors_; ++t) kernels_->divide(z, size, divisors_[(size_t)t]);
    if (view_.marks && view_.flagged[begin / kBlock]) {
      for (int64_t i = 0; i < size; ++i) z[i] = passed_over(begin + i) ? -HUGE_VALF : z[i];
    }
    take(z, size);
  }
  if (!plan_->patches) return;
  for (int64_t at = 0; at < patches_.size(); at += kBlock) take(patches_.z.get() + at, std::min(kBlock, patches_.size() - at));
}
