// What comes after the steps: the draw, the log-probabilities and the logits that are left.
#include <float.h>
#include <math.h>
#include <string.h>

#include <algorithm>

#include "chain_row.h"
#include "load.h"
#include "numeric.h"

int64_t ChainRow::first_maximum() {
  if (form_ != kList) list_from(max_, HUGE_VALF);
  int64_t i = 0;
  while (z_[i] != max_) ++i;
  return ids_[i];
}

int64_t ChainRow::draw() {
  const uint64_t bits = ts_uniform_bits(args_->seed[row_], args_->stream[row_], args_->position[row_], args_->draw);
  if (form_ == kList) {
    const uint64_t target = ts_mulhi(bits, weigh_list());
    uint64_t running = 0;
    for (int64_t i = 0;; ++i) {
      running += w_[i];
      if (running > target) return ids_[i];
    }
  }
  if (form_ == kDense) {
    from_ = -FLT_MAX;
    between_known_ = false;
    kept_ = dense_total();
    n_ = merge_patches(0, -FLT_MAX);
    list_weighed_ = false;
    weigh_list();
  }
  const uint64_t target = ts_mulhi(bits, kept_);
  uint64_t running = 0, ties = ties_;
  int64_t listed = 0, at = 0;
  for (int64_t b = 0;; ++b) {
    uint64_t here = blocks_[b];
    const uint64_t ties_before = ties;
    const int64_t end = between_known_ ? between_ends_[b] : at;
    if (!ties) {  // nearly always; below each value waits for the ties counted before it
      for (; at < end; ++at) here += between_w_[at] & (0 - (uint64_t)(between_[at] >= threshold_));
    }
    for (; at < end; ++at) {
      const float z = between_[at];
      const bool tie = z == threshold_, stays = (z > threshold_) | (tie & (ties == 0));  // there is nothing to predict
      ties -= tie & (ties > 0);
      here += stays ? between_w_[at] : 0;
    }
    for (; listed < n_ && ids_[listed] < (b + 1) * kBlock; ++listed) here += w_[listed];
    if (running + here > target) return draw_in_block(b, running, target, ties_before);
    running += here;
  }
}

int64_t ChainRow::draw_in_block(int64_t block, uint64_t running, uint64_t target, uint64_t ties) {
  const int64_t begin = block * kBlock, size = std::min(kBlock, vocab_ - begin);
  float z[kBlock];
  uint64_t w[kBlock];
  ts_load_row(ts_row(source_, begin, 1, args_->dtype), size, args_->dtype, z);
  for (int32_t t = 0; t < dense_divisors_; ++t) kernels_->divide(z, size, divisors_[(size_t)t]);
  if (view_.marks) {
    for (int64_t i = 0; i < size; ++i) z[i] = passed_over(begin + i) ? -HUGE_VALF : z[i];
  }
  for (int64_t i = 0; i < size; ++i) {  // as in draw() there is nothing to predict
    const bool tie = between_known_ & (z[i] == threshold_) & !(z[i] >= from_);
    const bool stays = (z[i] >= from_) | (between_known_ & (z[i] > threshold_)) | (tie & (ties == 0));
    ties -= tie & (ties > 0);
    z[i] = stays ? z[i] : -HUGE_VALF;
  }
  kernels_->weights(z, size, max_, plan_->bits, w);
  const int32_t *first = std::lower_bound(ids_.get(), ids_.get() + n_, (int32_t)begin);
  for (int64_t j = first - ids_.get(); j < n_ && ids_[j] < begin + size; ++j) w[ids_[j] - begin] = w_[j];
  int64_t i = 0;
  while ((running += w[i]) <= target && i + 1 < size) ++i;  // it is in this block
  return begin + i;
}

uint64_t ChainRow::raw_total() {
  if (!raw_total_known_) {
    const TsRow whole = {source_, vocab_, nullptr, nullptr, nullptr, 0, args_->dtype};
    raw_total_ = plan_->raw_differs ? kernels_->mass(&whole, raw_max_, plan_->bits, -FLT_MAX, nullptr) : dense_total();
    raw_total_known_ = true;
  }
  return raw_total_;
}

float ChainRow::logp_raw(int64_t token) {
  return ts_logp(ts_load_one(source_, token, args_->dtype), raw_max_, raw_total(), plan_->scale);
}

// The weights' sum of the row after all edits and no truncation, whose maximum is max.
uint64_t ChainRow::processed_total(float max) {
  if (processed_total_known_) return processed_total_;
  processed_total_known_ = true;
  if (apart_) {
    const TsRow row = {apart(), vocab_, nullptr, nullptr, nullptr, 0, TS_F32};
    return processed_total_ = kernels_->mass(&row, max, plan_->bits, -FLT_MAX, nullptr);
  }
  if (!plan_->processed_differs) return processed_total_ = dense_total();
  TsRow row = rest();
  row.divisor_count = divisors_seen_;
  row.marks = plan_->patches ? patches_.marks() : nullptr;
  row.flagged = plan_->patches ? patches_.flagged() : nullptr;
  processed_total_ = kernels_->mass(&row, max, plan_->bits, -FLT_MAX, nullptr);
  if (plan_->patches) {
    const float *z = patches_.processed.get();
    for (int64_t i = 0; i < patches_.size(); ++i) processed_total_ += ts_weight(ts_exp(z[i] - max), plan_->scale);
  }
  return processed_total_;
}

float ChainRow::logp_processed(int64_t token) {
  const int64_t patch = plan_->patches ? patches_.find((int32_t)token) : -1;
  const float z = patch >= 0 ? patches_.processed[patch] : apart_ ? apart_z_[token] : value_of(ts_load_one(source_, token, args_->dtype), divisors_seen_);
  const float max = dense_max(true);
  if (max == HUGE_VALF) return NAN;  // a dropped token that a later edit sent to infinity
  return ts_logp(z, max, processed_total(max), plan_->scale);
}

void ChainRow::write_logits() {
  float *out = args_->out_logits + row_ * vocab_;
  if (form_ == kAbove) list_whole();
  if (form_ == kList) {
    std::fill_n(out, vocab_, -HUGE_VALF);
    for (int64_t i = 0; i < n_; ++i) out[ids_[i]] = z_[i];
    return;
  }
  ts_load_row(source_, vocab_, args_->dtype, out);
  for (int32_t t = 0; t < dense_divisors_; ++t) kernels_->divide(out, vocab_, divisors_[(size_t)t]);
  if (view_.marks) {
    for (int64_t i = 0; i < vocab_; ++i) out[i] = passed_over(i) ? -HUGE_VALF : out[i];
  }
  if (plan_->patches) {
    for (int64_t i = 0; i < patches_.size(); ++i) out[patches_.ids[i]] = patches_.z[i];
  }
}

void ChainRow::finish() {
  args_->status[row_] = TS_ROW_OK;
  if (args_->out_logits) write_logits();
  if (!args_->token) return;
  const int64_t token = args_->greedy ? first_maximum() : draw();
  args_->token[row_] = token;
  if (args_->logp_truncated) {
    if (form_ == kAbove && args_->greedy) list_whole();
    const uint64_t total = form_ == kDense ? dense_total() : form_ == kAbove ? kept_ : weigh_list();
    float z;
    if (form_ == kList) {
      z = z_[std::lower_bound(ids_.get(), ids_.get() + n_, (int32_t)token) - ids_.get()];
    } else {
      const int64_t patch = plan_->patches ? patches_.find((int32_t)token) : -1;
      z = patch >= 0 ? patches_.z[patch] : value_of(ts_load_one(source_, token, args_->dtype), dense_divisors_);
    }
    args_->logp_truncated[row_] = ts_logp(z, max_, total, plan_->scale);
  }
  if (args_->logp_raw) args_->logp_raw[row_] = logp_raw(token);
  if (args_->logp_processed) args_->logp_processed[row_] = logp_processed(token);
  if (args_->top_count) tops();
}
