// One row of the sampling chain: how it is read, edited and listed, and the steps that take a threshold. Top-p of a dense row, other
// truncations, the draw and the rest are in the chain_*.cpp beside this one.
#include "chain_row.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include <algorithm>

#include "load.h"
#include "numeric.h"

namespace {

// Floats as signed integers of the same order; -0 comes just before +0.
int32_t ordered(float v) {
  const int32_t bits = (int32_t)float_to_bits(v);
  return bits < 0 ? INT32_MIN - bits - 1 : bits;
}
float unordered(int32_t key) { return bits_to_float((uint32_t)(key < 0 ? INT32_MIN - (key + 1) : key)); }

// Both results are worked out and one is taken by its bits: which one is nothing to predict.
float penalised(float z, float penalty) {
  const uint32_t negative = 0u - (uint32_t)(z < 0);
  return bits_to_float((float_to_bits(z * penalty) & negative) | (float_to_bits(z / penalty) & ~negative));
}

}  // namespace

ChainPlan::ChainPlan(const ts_sample_args &args)
    : in_line(ts_reads_in_line()), bits(ts_weight_bits(args.vocab)), scale(bits_to_double((uint64_t)(1023 + ts_weight_bits(args.vocab)) << 52)) {
  bool truncated = false;
  for (int64_t s = 0; s < args.step_count; ++s) {
    const int32_t op = args.steps[s].op;
    const bool removes = op == TS_BAN || op == TS_MASK || op == TS_XTC;
    if (!ts_is_edit(op)) truncated = true;
    temperatures += op == TS_TEMPERATURE || op == TS_DYNAMIC_TEMPERATURE;
    patches |= ts_names_tokens(op) && op != TS_ALLOW;
    history |= ts_needs_history(args.steps[s]);
    raw_differs |= ts_is_edit(op) || removes;
    processed_differs |= (ts_is_edit(op) && truncated) || removes;
  }
  const ts_step *const steps = args.steps;
  const int64_t first = args.step_count > 0 && steps[0].op == TS_TEMPERATURE;
  top_p_first = args.step_count > first && steps[first].op == TS_TOP_P && !(args.logp_raw && !raw_differs) &&
                !(args.logp_processed && !processed_differs);
  drawn_only = top_p_first && args.step_count == first + 1 && args.token && !args.greedy && !args.logp_raw && !args.logp_processed &&
               !args.logp_truncated && !args.top_count && !args.out_logits;
}

void ChainRow::run(const ts_sample_args &args, const ChainPlan &plan, const TsSampling &kernels, int64_t row) {
  args_ = &args;
  plan_ = &plan;
  kernels_ = &kernels;
  row_ = row;
  vocab_ = args.vocab;
  source_ = ts_row(args.logits, row, args.row_stride, args.dtype);
  begin();
  if (flat_token_ >= 0) {
    args.token[row] = flat_token_;
    args.status[row] = TS_ROW_OK;
    return;
  }
  for (int64_t s = 0; s < args.step_count && status_ == TS_ROW_OK; ++s) {
    const ts_step &step = args.steps[s];
    const double value = ts_step_value(step, row);
    switch (step.op) {
      case TS_TOP_K:
        top_k(value);
        break;
      case TS_TOP_P:
        if (form_ == kAbove) list_whole();  // by the rule that left it so
        rule_ = TS_TIES_HIGH;
        top_p(value);
        break;
      case TS_TOP_K_LOW:
        top_k_low(value);
        break;
      case TS_TOP_P_TIES:
        top_p_ties(step, value);
        break;
      case TS_MIROSTAT:
        mirostat(step, value);
        break;
      case TS_MIN_P:
        min_p(value);
        break;
      case TS_BAN:
      case TS_ALLOW:
      case TS_MASK:
        if (value != 0) remove(step);
        look_at(max_);
        break;
      case TS_EPSILON:
      case TS_ETA:
      case TS_TOP_A:
      case TS_TOP_N_SIGMA:
      case TS_TYPICAL:
      case TS_TOP_H:
      case TS_XTC:
        likely(step, value);
        break;
      default:
        edit(step, (float)value);
        look_at(max_);
    }
  }
  if (status_ == TS_ROW_OK) finish();
  else give_up();
  if (plan.patches) patches_.clear();
}

// ---- the dense row ----------------------------------------------------------------------------------------------

void ChainRow::begin() {
  form_ = kDense;
  status_ = TS_ROW_OK;
  total_known_ = raw_total_known_ = processed_total_known_ = false;
  n_ = 0;
  dense_divisors_ = divisors_seen_ = 0;
  apart_ = false;
  flat_token_ = -1;
  hinted_ = false;
  const int64_t blocks = (vocab_ + kBlock - 1) / kBlock;
  lanes_.at_least(blocks * kLanes);
  ids_.at_least(vocab_);
  z_.at_least(vocab_);
  if (plan_->patches) gather();
  if (plan_->temperatures) {
    divisors_.clear();
    for (int64_t s = 0; s < args_->step_count; ++s) {
      const int32_t op = args_->steps[s].op;  // what a dynamic temperature divides by is found when its turn comes
      if (op == TS_TEMPERATURE || op == TS_DYNAMIC_TEMPERATURE) divisors_.push_back((float)ts_step_value(args_->steps[s], row_));
    }
  }
  view_ = {source_, vocab_, plan_->patches ? patches_.marks() : nullptr, plan_->patches ? patches_.flagged() : nullptr,
           nullptr, 0, args_->dtype, plan_->in_line, nullptr};
  if (plan_->in_line && plan_->in_order && row_ + 1 < args_->batch) view_.next = ts_row(args_->logits, row_ + 1, args_->row_stride, args_->dtype);
  uint8_t has_nan = 0;
  scan_mass_ = -1;  // below: a top-p of 1 keeps the row dense, and other steps may change it before the next one
  const int32_t divided = plan_->top_p_first && args_->steps[0].op == TS_TEMPERATURE;
  if (plan_->top_p_first && !view_.marks && kernels_->scan_rough[args_->dtype] && ts_gentle(divided ? divisors_[0] : 1.0f) &&
      ts_step_value(args_->steps[divided], row_) < 1) {
    TsRow row = view_;
    row.divisors = divisors_.data();
    row.divisor_count = divided;
    const double p = ts_step_value(args_->steps[divided], row_);
    const bool judge = plan_->drawn_only && kernels_->flat && p > .05 && p < .999;
    rest_max_ = kernels_->scan_rough[row.dtype](&row, lanes_.get(), &has_nan, &scan_mass_, judge);
    if (judge && scan_mass_ == kFlat) {
      ts_ask_for(TS_WARM_BOUNDS(ts_warm_flat));
      if (flat_row(p)) return;
      rest_max_ = kernels_->scan[view_.dtype](&view_, lanes_.get(), &has_nan);
    }
  } else {
    rest_max_ = kernels_->scan[view_.dtype](&view_, lanes_.get(), &has_nan);
  }
  if (has_nan) {
    status_ = TS_ROW_NAN;
    return;
  }
  // Only now that the row is in the caches: reads here and there are slow before.
  if (plan_->patches) load_patches();
  whole_rest_max_ = rest_max_;
  raw_max_ = max_ = dense_max(false);
  look_at(max_);
}

void ChainRow::load_patches() {
  const int64_t count = patches_.size();
  if (!count) return;
  const int32_t *ids = patches_.ids.get();
  float *z = patches_.z.get();
  if (args_->dtype == TS_F32) {
    for (int64_t i = 0; i < count; ++i) z[i] = ((const float *)source_)[ids[i]];
  } else {
    for (int64_t i = 0; i < count; ++i) z[i] = ts_load_one(source_, ids[i], args_->dtype);
  }
  if (args_->top_raw_ids) memcpy(patches_.raw.get(), z, (size_t)count * sizeof(float));
  if (processed_asked()) memcpy(patches_.processed.get(), z, (size_t)count * sizeof(float));
}

void ChainRow::look_at(float max) {
  if (status_ != TS_ROW_OK) return;
  if (max == HUGE_VALF) status_ = TS_ROW_POSINF;
  if (max == -HUGE_VALF) status_ = TS_ROW_EMPTY;
}

void ChainRow::give_up() {
  args_->status[row_] = status_;
  if (args_->token) args_->token[row_] = -1;
  float *const outputs[] = {args_->logp_raw, args_->logp_processed, args_->logp_truncated};
  for (float *output : outputs) {
    if (output) output[row_] = NAN;
  }
  if (args_->out_logits) std::fill_n(args_->out_logits + row_ * vocab_, vocab_, NAN);
  const int64_t count = std::min(args_->top_count, vocab_);
  int64_t *const ids[] = {args_->top_raw_ids, args_->top_processed_ids, args_->top_truncated_ids};
  float *const logps[] = {args_->top_raw, args_->top_processed, args_->top_truncated};
  for (int which = 0; which < 3; ++which) {
    if (ids[which]) std::fill_n(ids[which] + row_ * count, count, -1);
    if (logps[which]) std::fill_n(logps[which] + row_ * count, count, NAN);
  }
}

// The tokens that are not patched, as they are now.
const TsRow &ChainRow::rest() {
  view_.divisors = divisors_.data();
  view_.divisor_count = dense_divisors_;
  return view_;
}

float ChainRow::value_of(float x, int32_t divisors) const {
  for (int32_t t = 0; t < divisors; ++t) x = x / divisors_[(size_t)t];
  return x;
}

// The smallest x whose value is at least z: several x can have one quotient.
float ChainRow::least(float z) const {
  if (dense_divisors_ == 0 || z <= -FLT_MAX) return z;
  double x = z;
  for (int32_t t = 0; t < dense_divisors_; ++t) x *= divisors_[(size_t)t];
  const auto reaches = [this, z](int32_t key) { return value_of(unordered(key), dense_divisors_) >= z; };
  const int32_t lowest = ordered(-FLT_MAX), highest = ordered(HUGE_VALF);
  const float guess = x > FLT_MAX ? FLT_MAX : x < -FLT_MAX ? -FLT_MAX : (float)x;
  int64_t yes = ordered(guess), no = yes;
  for (int64_t step = 1; !reaches((int32_t)yes); step *= 2) {
    no = yes;
    yes = std::min<int64_t>(yes + step, highest);
    if (yes == highest) break;
  }
  for (int64_t step = 1; no == yes || reaches((int32_t)no); step *= 2) {
    if (no == lowest) return -FLT_MAX;
    yes = no;
    no = std::max<int64_t>(no - step, lowest);
  }
  while (yes - no > 1) {
    const int64_t middle = no + (yes - no) / 2;
    if (reaches((int32_t)middle)) yes = middle;
    else no = middle;
  }
  return unordered((int32_t)yes);
}

float ChainRow::dense_max(bool processed) {
  if (processed && apart_) {
    const float *z = apart();
    return *std::max_element(z, z + vocab_);
  }
  const float largest = processed ? value_of(whole_rest_max_, divisors_seen_) : value_of(rest_max_, dense_divisors_);
  return plan_->patches ? std::max(largest, patches_.largest(processed ? patches_.processed : patches_.z)) : largest;
}

// The weights' sum of the patched tokens of the dense row that are less than `below`.
uint64_t ChainRow::patched_weights(float max, float below) {
  uint64_t sum = 0;
  if (!plan_->patches) return sum;
  const float *z = patches_.z.get();
  for (int64_t i = 0; i < patches_.size(); ++i) {
    if (z[i] < below) sum += ts_weight(ts_exp(z[i] - max), plan_->scale);
  }
  return sum;
}

// The weights' sum of the dense row, and blocks_ with what of it is not patched.
uint64_t ChainRow::dense_total() {
  if (total_known_) return dense_total_;
  blocks_.at_least((vocab_ + kBlock - 1) / kBlock);
  const float max = form_ == kDense ? max_ : dense_max(false);
  dense_total_ = kernels_->mass(&rest(), max, plan_->bits, -FLT_MAX, blocks_.get()) + patched_weights(max, HUGE_VALF);
  total_known_ = true;
  return dense_total_;
}

// ---- edits ------------------------------------------------------------------------------------------------------

void ChainRow::edit(const ts_step &step, float value) {
  if (form_ == kAbove) list_whole();
  list_weighed_ = false;
  if (step.op == TS_REPETITION_PENALTY && !step.ids) {
    penalise(value);
  } else if (step.op == TS_TEMPERATURE) {
    cool(value, value);
    if (form_ == kDense) total_known_ = false;
    max_ = max_ / value;  // the order of values stays, so what was largest is
    return;
  } else if (step.op == TS_DYNAMIC_TEMPERATURE) {
    dynamic_temperature(step, ts_step_value(step, row_));
  } else if (step.op == TS_WATERMARK) {
    watermark(step, value);
  } else {
    edit_tokens(step);
  }
  remax();
}

// What is largest after values have changed.
void ChainRow::remax() {
  if (form_ == kDense) {
    total_known_ = false;
    max_ = dense_max(false);
  } else {
    max_ = -HUGE_VALF;
    for (int64_t i = 0; i < n_; ++i) max_ = z_[i] > max_ ? z_[i] : max_;
  }
}

// Keskar et al. (2019): logits of tokens seen before are divided by the penalty, or multiplied where negative.
void ChainRow::penalise(float penalty) {
  const int64_t count = history_patches_;
  if (processed_asked()) {
    float *z = patches_.processed.get();
    for (int64_t i = 0; i < count; ++i) z[i] = penalised(z[i], penalty);
  }
  if (form_ == kDense) {
    float *z = patches_.z.get();
    for (int64_t i = 0; i < count; ++i) z[i] = penalised(z[i], penalty);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t place = place_of(patches_.ids[i]);
    if (place >= 0) z_[place] = penalised(z_[place], penalty);
  }
}

// ---- lists ------------------------------------------------------------------------------------------------------

// Puts the patched tokens of at least `from` among the first n tokens of the list, in order of ids.
int64_t ChainRow::merge_patches(int64_t n, float from) {
  if (!plan_->patches) return n;
  const int64_t whole = patches_.size();
  const float *z = patches_.z.get();
  const int32_t *ids = patches_.ids.get();
  uint64_t *some = merged_.at_least(whole);  // ids, and behind them where they are
  int64_t found = 0;
  for (int64_t begin = 0; begin < whole; begin += kLanes) {
    const int64_t end = std::min<int64_t>(begin + kLanes, whole);
    int32_t reached = 0;  // mostly none is: looked at together
    for (int64_t i = begin; i < end; ++i) reached |= z[i] >= from;
    if (!reached) continue;
    for (int64_t i = begin; i < end; ++i) {
      some[found] = (uint64_t)ids[i] << 32 | (uint64_t)i;
      found += z[i] >= from;
    }
  }
  if (found > 1) std::sort(some, some + found);
  int64_t to = n + found, at = n;
  for (int64_t left = found; left > 0;) {
    const int32_t id = (int32_t)(some[left - 1] >> 32);
    --to;
    if (at > 0 && ids_[at - 1] > id) {
      --at;
      ids_[to] = ids_[at];
      z_[to] = z_[at];
    } else {
      ids_[to] = id;
      z_[to] = z[(uint32_t)some[left - 1]];
      --left;
    }
  }
  return n + found;
}

// Lists the tokens of the dense row with from <= z < below; of the patched ones also those that are larger.
void ChainRow::list_from(float from, float below) {
  from = std::max(from, -FLT_MAX);  // a quotient may be -inf of a value that is not, and -inf also stands behind the row's end
  n_ = kernels_->collect[view_.dtype](&rest(), lanes_.get(), least(from), below == HUGE_VALF ? below : least(below), ids_.get(), z_.get());
  for (int32_t t = 0; t < dense_divisors_; ++t) kernels_->divide(z_.get(), n_, divisors_[(size_t)t]);
  n_ = merge_patches(n_, from);
  list_weighed_ = false;
}

// Turns what top-p left of a flat row into a list.
void ChainRow::list_whole() {
  list_from(threshold_, HUGE_VALF);
  form_ = kList;
  keep_beyond(threshold_, ties_);
}

uint64_t ChainRow::weigh_list() {
  if (!list_weighed_) {
    list_total_ = kernels_->weights(z_.get(), n_, max_, plan_->bits, w_.at_least(vocab_));
    list_weighed_ = true;
  }
  return list_total_;
}

// Drops what is below the threshold, and the first `ties` tokens that equal it.
void ChainRow::keep_beyond(float threshold, uint64_t ties) {
  if (ties > 0 && rule_ != TS_TIES_HIGH) return keep_by_rule(threshold, ties);
  int64_t left = 0;
  float *z = z_.get();
  int32_t *ids = ids_.get();
  uint64_t total = 0;
  // Everything is written and only the count depends on what stays: there is nothing to predict.
  if (!list_weighed_) {
    for (int64_t i = 0; i < n_; ++i) {
      const bool tie = (z[i] == threshold) & (ties > 0), goes = (z[i] < threshold) | tie;
      ties -= tie;
      ids[left] = ids[i];
      z[left] = z[i];
      left += !goes;
    }
  } else {
    uint64_t *w = w_.get();
    for (int64_t i = 0; i < n_; ++i) {
      const bool tie = (z[i] == threshold) & (ties > 0), goes = (z[i] < threshold) | tie;
      ties -= tie;
      total += goes ? 0 : w[i];
      ids[left] = ids[i];
      z[left] = z[i];
      w[left] = w[i];
      left += !goes;
    }
  }
  n_ = left;
  list_total_ = total;
}

// ---- truncations ------------------------------------------------------------------------------------------------

// A value that at least k tokens reach that are not patched, or -inf.
float ChainRow::kth_of_lanes(int64_t k) {
  const int64_t count = (vocab_ + kBlock - 1) / kBlock * kLanes;
  if (k > count) return -HUGE_VALF;
  return kernels_->kth_of_lanes(lanes_.get(), count, k, select_.at_least(3 * count + 2 * kLanes));
}

// Keeps every token that ties with the k-th largest; k below 1 keeps all.
void ChainRow::top_k(double wanted) {
  if (wanted < 1 || wanted >= (double)vocab_) return;
  const int64_t k = (int64_t)wanted;
  if (form_ == kAbove) list_whole();
  if (form_ == kDense) {
    const float x = kth_of_lanes(k);
    list_from(x == -HUGE_VALF ? -FLT_MAX : value_of(x, dense_divisors_), HUGE_VALF);
    form_ = kList;
  }
  if (k >= n_) return;
  keep_beyond(kernels_->kth(z_.get(), n_, k, select_.at_least(2 * vocab_ + 2 * kLanes)), 0);
}

// Nguyen et al. (2024): drops tokens less likely than p times the likeliest.
void ChainRow::min_p(double p) {
  if (p <= 0) return;
  if (form_ == kAbove) list_whole();
  if (form_ == kDense) {
    // A little lower than the limit, whatever the rounding of exp; below exp(kExpFloor) everything may stay.
    const double from = p < 1e-36 ? -FLT_MAX : (double)max_ + log(p) - 1e-3;
    list_from(from < -FLT_MAX ? -FLT_MAX : (float)from, HUGE_VALF);
    form_ = kList;
  }
  float *e = e_.at_least(vocab_);
  kernels_->exps(z_.get(), n_, max_, 1, e);
  int64_t left = 0;
  uint64_t total = 0, *w = w_.at_least(vocab_);
  float *z = z_.get();
  int32_t *ids = ids_.get();
  for (int64_t i = 0; i < n_; ++i) {  // as in keep_beyond
    const bool goes = (double)e[i] < p;
    ids[left] = ids[i];
    z[left] = z[i];
    total += goes ? 0 : w[i];  // of no meaning if the list has not been weighed
    w[left] = w[i];
    left += !goes;
  }
  n_ = left;
  list_total_ = total;
}
