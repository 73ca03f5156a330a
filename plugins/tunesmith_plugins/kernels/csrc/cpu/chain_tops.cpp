// The likeliest tokens of a row that was drawn from, with their log-probabilities.
#include <float.h>
#include <math.h>

#include <algorithm>

#include "chain_row.h"
#include "load.h"
#include "numeric.h"

// The last thing that is done with a row: it is not the same afterwards.
void ChainRow::tops() {
  if (args_->top_truncated_ids) {
    if (form_ == kAbove) list_whole();
    top_of(args_->top_truncated_ids, args_->top_truncated, max_, form_ == kDense ? dense_total() : weigh_list());
  }
  if (!args_->top_processed_ids && !args_->top_raw_ids) return;
  // Both are seen as dense rows, through the divisors and patches of the one and of the other.
  const bool processed = args_->top_processed_ids != nullptr;
  const float max = processed ? dense_max(true) : 0;
  const uint64_t total = processed && max < HUGE_VALF ? processed_total(max) : 0, raw = args_->top_raw_ids ? raw_total() : 0;
  form_ = kDense;
  if (view_.marks && view_.marks == hidden_.get()) {
    view_.marks = plan_->patches ? patches_.marks() : nullptr;
    view_.flagged = plan_->patches ? patches_.flagged() : nullptr;
    uint8_t has_nan = 0;
    rest_max_ = kernels_->scan[view_.dtype](&view_, lanes_.get(), &has_nan);
  }
  if (processed && apart_) {
    list_apart();
    top_of(args_->top_processed_ids, args_->top_processed, max, total);
  } else if (processed) {
    dense_divisors_ = divisors_seen_;
    if (plan_->patches) std::copy_n(patches_.processed.get(), patches_.size(), patches_.z.get());
    top_of(args_->top_processed_ids, args_->top_processed, max, total);
  }
  if (args_->top_raw_ids) {
    form_ = kDense;
    dense_divisors_ = 0;
    if (plan_->patches) std::copy_n(patches_.raw.get(), patches_.size(), patches_.z.get());
    top_of(args_->top_raw_ids, args_->top_raw, raw_max_, raw);
  }
}

// Of the row as it is: equals by id; behind the tokens that are possible come the others, in order of ids.
void ChainRow::top_of(int64_t *ids, float *logps, float max, uint64_t total) {
  const int64_t count = std::min(args_->top_count, vocab_);
  ids += row_ * count;
  logps += row_ * count;
  if (form_ == kDense) {
    const float x = kth_of_lanes(count);
    list_from(x == -HUGE_VALF ? -FLT_MAX : value_of(x, dense_divisors_), HUGE_VALF);
  }
  const float *z = z_.get();
  std::vector<int32_t> &order = chosen_;
  order.clear();
  for (int64_t i = 0; i < n_; ++i) {
    if (z[i] > -HUGE_VALF) order.push_back((int32_t)i);
  }
  const int64_t found = std::min(count, (int64_t)order.size());
  std::partial_sort(order.begin(), order.begin() + found, order.end(),
                    [z](int32_t a, int32_t b) { return z[a] > z[b] || (z[a] == z[b] && a < b); });
  for (int64_t i = 0; i < found; ++i) {
    const int32_t place = order[(size_t)i];
    ids[i] = ids_[place];
    logps[i] = max < HUGE_VALF ? ts_logp(z[place], max, total, plan_->scale) : NAN;
  }
  if (found == count) return;
  int64_t at = found, listed = 0;  // fewer than were asked for are possible, so all of those are listed
  for (int64_t id = 0; at < count; ++id) {
    while (listed < n_ && (ids_[listed] < id || !(z[listed] > -HUGE_VALF))) ++listed;
    if (listed < n_ && ids_[listed] == id) continue;
    ids[at] = id;
    logps[at++] = max < HUGE_VALF ? -HUGE_VALF : NAN;
  }
}
