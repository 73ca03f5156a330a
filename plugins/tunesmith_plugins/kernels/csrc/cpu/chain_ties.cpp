// Top-k and top-p with other rules for equal tokens at the border of what stays.
#include <math.h>
#include <string.h>

#include <algorithm>

#include "chain_row.h"

// What keep_beyond does, where not the lowest ids of the ties go but the highest, or none.
void ChainRow::keep_by_rule(float threshold, uint64_t ties) {
  int64_t stay = n_;
  if (rule_ == TS_TIES_LOW) {
    stay = -(int64_t)ties;
    for (int64_t i = 0; i < n_; ++i) stay += z_[i] == threshold;
  }
  int64_t left = 0;
  uint64_t total = 0;
  for (int64_t i = 0; i < n_; ++i) {
    const bool tie = z_[i] == threshold, goes = z_[i] < threshold || (tie && stay <= 0);
    stay -= tie;
    ids_[left] = ids_[i];
    z_[left] = z_[i];
    if (list_weighed_) {
      total += goes ? 0 : w_[i];
      w_[left] = w_[i];
    }
    left += !goes;
  }
  n_ = left;
  list_total_ = total;
}

// The lowest value of the list.
float ChainRow::lowest() {
  const float *z = z_.get();
  return *std::min_element(z, z + n_);
}

void ChainRow::top_k_low(double k) {
  if (k < 1 || k >= (double)vocab_) return;
  top_k(k);
  if ((double)n_ <= k) return;
  rule_ = TS_TIES_LOW;
  keep_beyond(lowest(), (uint64_t)(n_ - (int64_t)k));
}

void ChainRow::top_p_ties(const ts_step &step, double p) {
  const double *second = step.second + row_ * step.second_stride, fewest = second[0];
  if (p >= 1 || fewest >= (double)vocab_) return;
  if (form_ == kAbove) list_whole();  // by the rule that left it so
  rule_ = (int32_t)second[1];
  const Form before = form_;
  const int64_t count = n_;
  if (fewest > 1 && before == kList) {
    chosen_.assign(ids_.get(), ids_.get() + n_);
    memcpy(before_z_.at_least(vocab_), z_.get(), (size_t)n_ * sizeof(float));
  }
  top_p(p);
  if (fewest <= 1) return;
  if (form_ == kAbove) list_whole();
  if ((double)n_ >= fewest) return;
  // Too few: the likeliest of the row as it was, in the same order.
  form_ = before;
  list_weighed_ = total_known_ = false;
  if (before == kList) {
    n_ = count;
    std::copy(chosen_.begin(), chosen_.end(), ids_.get());
    memcpy(z_.get(), before_z_.get(), (size_t)n_ * sizeof(float));
  }
  top_k(fewest);
  if ((double)n_ > fewest) keep_beyond(lowest(), (uint64_t)(n_ - (int64_t)fewest));
}
