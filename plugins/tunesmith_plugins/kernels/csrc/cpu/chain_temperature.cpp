// Temperatures, one of which looks at the entropy, and the processed row where it is no longer the given one seen
// through divisors: after a watermark, or where truncated and processed row have an entropy each.
#include <float.h>
#include <math.h>

#include <algorithm>

#include "chain_row.h"
#include "chain_values.h"
#include "load.h"
#include "numeric.h"
#include "temperature.h"

// Divides every value, of the row and of the processed row.
void ChainRow::cool(float divisor, float processed_divisor) {
  divisors_[(size_t)divisors_seen_++] = divisor;
  if (form_ == kDense) dense_divisors_ = divisors_seen_;
  else kernels_->divide(z_.get(), n_, divisor);
  list_weighed_ = false;
  if (apart_) kernels_->divide(apart_z_.get(), vocab_, processed_divisor);
  if (!plan_->patches) return;
  const int64_t count = patches_.size();
  if (form_ == kDense) {
    float *z = patches_.z.get();
    for (int64_t i = 0; i < count; ++i) z[i] = z[i] / divisor;
  }
  if (processed_asked()) {
    float *z = patches_.processed.get();
    for (int64_t i = 0; i < count; ++i) z[i] = z[i] / processed_divisor;
  }
}

void ChainRow::dynamic_temperature(const ts_step &step, double low) {
  const double *second = step.second + row_ * step.second_stride;
  const double scale = plan_->scale;
  const auto depth_of = [this, scale](const float *z, int64_t count, float max, int64_t *finite) {
    float e[kBlock];
    kernels_->exps(z, count, max, 1, e);
    uint64_t depth = 0;
    int64_t some = 0;
    for (int64_t i = 0; i < count; ++i) {
      depth += ts_depth(z[i] - max, e[i], scale);
      some += z[i] > -HUGE_VALF;
    }
    *finite += some;
    return depth;
  };
  const uint64_t total = form_ == kDense ? dense_total() : weigh_list();
  uint64_t depth = 0;
  int64_t finite = 0;
  over_values([&](const float *z, int64_t count) { depth += depth_of(z, count, max_, &finite); });
  const float divisor = ts_dynamic_divisor(total, depth, finite, scale, low, second);
  bool truncated = form_ != kDense;
  for (const ts_step *each = args_->steps; each != &step; ++each) truncated |= !ts_is_edit(each->op);
  if (!apart_ && truncated && processed_asked()) set_apart();
  float processed = divisor;
  if (apart_) {
    const float max = dense_max(true);
    if (max < HUGE_VALF && max > -HUGE_VALF) {
      const float *z = apart();
      const TsRow row = {z, vocab_, nullptr, nullptr, nullptr, 0, TS_F32};
      const uint64_t whole = kernels_->mass(&row, max, plan_->bits, -FLT_MAX, nullptr);
      depth = 0;
      finite = 0;
      for (int64_t at = 0; at < vocab_; at += kBlock) depth += depth_of(z + at, std::min(kBlock, vocab_ - at), max, &finite);
      processed = ts_dynamic_divisor(whole, depth, finite, scale, low, second);
    }
  }
  cool(divisor, processed);
}

// From here on the processed row has values of its own.
void ChainRow::set_apart() {
  if (apart_) return;
  float *z = apart_z_.at_least(vocab_);
  ts_load_row(source_, vocab_, args_->dtype, z);
  for (int32_t t = 0; t < divisors_seen_; ++t) kernels_->divide(z, vocab_, divisors_[(size_t)t]);
  apart_ = true;
}

// The processed row with what its patched tokens are.
float *ChainRow::apart() {
  float *z = apart_z_.get();
  if (plan_->patches) {
    for (int64_t i = 0; i < patches_.size(); ++i) z[patches_.ids[i]] = patches_.processed[i];
  }
  return z;
}

// Makes the processed row the list.
void ChainRow::list_apart() {
  const float *z = apart();
  n_ = 0;
  for (int64_t id = 0; id < vocab_; ++id) {
    if (!(z[id] > -HUGE_VALF)) continue;
    ids_[n_] = (int32_t)id;
    z_[n_++] = z[id];
  }
  form_ = kList;
  list_weighed_ = false;
}
