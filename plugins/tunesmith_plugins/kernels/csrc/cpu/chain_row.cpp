#include "chain_row.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include <algorithm>

#include "load.h"
#include "numeric.h"
#include "short_list.h"

namespace {

// Floats as signed integers of the same order; -0 comes just before +0.
int32_t ordered(float v) {
  const int32_t bits = (int32_t)float_to_bits(v);
  return bits < 0 ? INT32_MIN - bits - 1 : bits;
}
float unordered(int32_t key) { return bits_to_float((uint32_t)(key < 0 ? INT32_MIN - (key + 1) : key)); }

// Divisors that estimates are good for.
bool gentle(float divisor) { return divisor >= 1e-4f && divisor <= 1e4f; }

// ln(v) of a normal v > 0 within 0.006, and an upper bound of it. The functions of the C library are in a file of their own, and
// after other work in no cache.
float rough_log(float v) {
  const uint32_t bits = float_to_bits(v);
  const float m = bits_to_float((bits & 0x7fffffu) | 0x3f800000u) - 1;
  return 0.6931472f * ((float)((int32_t)(bits >> 23) - 127) + m + 0.344f * m * (1 - m));
}
double log_bound(double v) { return (double)((int64_t)(double_to_bits(v) >> 52) - 1022) * kLn2; }

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
  if (plan_->top_p_first && !view_.marks && kernels_->scan_rough[args_->dtype] && gentle(divided ? divisors_[0] : 1.0f) &&
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

// In ascending order (ties: lowest id first), drops tokens while the mass so far is at most (1 - p) of the whole, but
// never the last one.
void ChainRow::top_p(double p) {
  if (p >= 1) return;
  if (form_ == kAbove) list_whole();
  if (form_ == kDense) return dense_top_p(p);
  const uint64_t total = weigh_list(), limit = ts_top_p_limit(p, total);
  if (limit >= total) {
    uint64_t largest = 0;
    for (int64_t i = 0; i < n_; ++i) largest += z_[i] == max_;
    keep_beyond(max_, largest - 1);
    return;
  }
  uint64_t before;
  const float threshold = boundary(0, limit, &before);
  keep_beyond(threshold, (limit - before) / ts_weight(ts_exp(threshold - max_), plan_->scale));
}

// ts_boundary of the list, which must have been weighed.
float ChainRow::boundary(uint64_t running, uint64_t limit, uint64_t *before) {
  if (!running && n_ <= kShortList) return ts_short_boundary(z_.get(), w_.get(), n_, max_, limit, before);
  return ts_boundary(z_.get(), w_.get(), n_, weighed_.at_least(vocab_), running, limit, before);
}

void ChainRow::dense_top_p(double p) {
  if (quick_top_p(p)) return;
  const uint64_t total = dense_total(), limit = ts_top_p_limit(p, total);
  if (limit >= total) {
    list_from(max_, HUGE_VALF);
    form_ = kList;
    keep_beyond(max_, (uint64_t)n_ - 1);
    return;
  }
  for (int attempt = 0; attempt < 2; ++attempt) {
    if (narrow(guess((double)limit / plan_->scale, attempt), total, limit)) return;
  }
  narrow({-FLT_MAX, HUGE_VALF}, total, limit);
}

// With the mass of the row known the lanes' maxima alone may reach what has to stay, the share p: then the boundary is not below
// the least of these. False where it takes too many of them.
bool ChainRow::guess_by_lanes(double p, Bracket *bracket) {
  const int64_t lanes = vocab_ / kBlock * kLanes;
  if (scan_mass_ < 0 || vocab_ < 1024) return false;
  float *e = lane_e_.at_least(lanes + kLanes);
  const float divisor = dense_divisors_ ? divisors_[0] : 1.0f;
  kernels_->exps(lanes_.get(), lanes, max_ * divisor, 1 / divisor, e);
  int64_t under = 0;
  const float whole = kernels_->below(e, lanes, HUGE_VALF, &under), allowed = whole - (float)(p * scan_mass_ * 1.0001);
  if (!(allowed > 0)) return false;
  // How much more than what is allowed lies below a depth, as a logarithm; false position as in guess(), since few looks do here.
  constexpr float kNear = 0.08f, kFew = 128, kDeepest = 44;
  const auto excess = [&](float depth) {
    return rough_log(std::max(kernels_->below(e, lanes, ts_exp(-depth), &under) / allowed, 1e-30f));
  };
  float shallow = 0, left = rough_log(whole / allowed), deep = 6, right = excess(deep);
  while (right > 0 && deep < kDeepest) {
    shallow = deep;
    left = right;
    deep = std::min(1.5f * deep, kDeepest);
    right = excess(deep);
  }
  if (right > 0) return false;
  int64_t above = lanes - under;
  int last = 0;
  for (int step = 0; step < 8 && right < -kNear && (float)above > kFew; ++step) {
    const float share = (left + kNear / 2) / (left - right);
    const float depth = shallow + std::min(std::max(share, 0.03f), 0.97f) * (deep - shallow), found = excess(depth);
    if (found > 0) {
      shallow = depth;
      left = found;
      if (last == 1) right /= 2;
      last = 1;
    } else {
      deep = depth;
      right = found;
      above = lanes - under;
      if (last == -1) left /= 2;
      last = -1;
    }
  }
  *bracket = {max_ - deep, HUGE_VALF};
  return above <= lanes / 2;
}

// Guesses values between which the boundary of top-p lies, from the lanes' maxima and a sample of the other tokens.
// `dropped`: the mass that goes, a share of the whole if it is below 0. A wrong guess costs time and nothing else.
ChainRow::Bracket ChainRow::guess(double dropped, int attempt) {
  const Bracket everything = {-FLT_MAX, HUGE_VALF};
  if (vocab_ < 1024) return everything;
  // Of a flat row the sample alone does as well, and takes half the time.
  const bool flat = scan_mass_ == kFlat;
  const int64_t all_lanes = vocab_ / kBlock * kLanes, lanes = flat ? 0 : all_lanes;
  const int64_t stride = std::max<int64_t>(1, all_lanes / 4096);
  const float *lane_x = flat ? nullptr : lanes_.get();
  float *lane_e = lane_e_.at_least(lanes + kLanes), *sample_e = nullptr;
  double divisor = 1;
  for (int32_t t = 0; t < dense_divisors_; ++t) divisor *= divisors_[(size_t)t];
  const float top = (float)(max_ * divisor), slope = (float)(1 / divisor);
  kernels_->exps(lane_x, lanes, top, slope, lane_e);
  int64_t count = 0, padded = 0, lanes_below = 0, sample_below = 0;
  float error = 0, factor = 0;
  const auto look_at_sample = [&] {
    float *sample_x = sample_x_.at_least(all_lanes + kLanes);
    count = kernels_->sample(&rest(), lane_x, stride, sample_x);
    sample_e = sample_e_.at_least(all_lanes + kLanes);
    kernels_->exps(sample_x, count, top, slope, sample_e);
    padded = (count + kLanes - 1) / kLanes * kLanes;
    std::fill(sample_e + count, sample_e + padded, HUGE_VALF);  // never below anything
    factor = (float)(vocab_ - lanes) / (float)std::max<int64_t>(count, 1);
  };
  // The mass below max_ - depth; sets how far off it may be.
  const auto mass_below = [&](float depth) {
    const float e = ts_exp(-depth);
    const float sure = kernels_->below(lane_e, lanes, e, &lanes_below);
    if (!sample_e) return sure;
    const float guessed = kernels_->below(sample_e, padded, e, &sample_below);
    error = factor * sqrtf(e * (guessed + e));
    return sure + factor * guessed;
  };
  const auto number_above = [&] { return (float)(lanes - lanes_below) + factor * (float)(count - sample_below); };
  constexpr float kDeepest = 44;  // below that nothing weighs anything
  float allowed = (float)dropped, doubt = attempt ? 10 : 4;
  // How much more than what is allowed the mass below is with `doubt` times its error, as a logarithm.
  const auto excess = [&](float depth) {
    const float mass = mass_below(depth);
    return logf(fmaxf((mass + doubt * error) / allowed, 1e-30f));
  };
  // A depth at which it is a little less, where the mass of everything is `whole`. False position, with a step of the side
  // that lasts halved (the Illinois rule), until the deeper side is near or few tokens are above it.
  const auto depth_of_boundary = [&](float whole, float deep, float further) {
    constexpr float kNear = 0.04f, kFew = 128;
    float shallow = 0, left = logf(whole / allowed), right;
    while ((right = excess(deep)) > 0 && deep < kDeepest) {
      shallow = deep;
      left = right;
      deep = fminf(further * deep, kDeepest);
      further = fminf(further * further, 2);
    }
    int last = 0;
    bool near = right >= -kNear || number_above() <= kFew;
    for (int step = 0; step < 12 && !near; ++step) {
      const float share = (left + kNear / 2) / (left - right);
      const float depth = shallow + fminf(fmaxf(share, 0.03f), 0.97f) * (deep - shallow), found = excess(depth);
      if (found > 0) {
        shallow = depth;
        left = found;
        if (last == 1) right /= 2;
        last = 1;
      } else {
        deep = depth;
        right = found;
        near = found >= -kNear || number_above() <= kFew;
        if (last == -1) left /= 2;
        last = -1;
      }
    }
    return deep;
  };
  look_at_sample();
  float whole = 20 * allowed;
  if (dropped < 0) {
    whole = mass_below(-1) + (float)((double)(int64_t)patched_weights(max_, HUGE_VALF) / plan_->scale);
    allowed *= -whole;
  }
  if (!(allowed > 0)) return {max_ - kDeepest, HUGE_VALF};
  float start = 4, further = 2;
  constexpr int64_t kCoarse = 8;
  if (flat && padded >= kCoarse * 512) {
    // First with one in kCoarse of the sample, so that the whole has to be looked at a few times only.
    float *const all_e = sample_e, once = factor, sure = doubt;
    const int64_t all = padded, some = count;
    count = padded = all / kLanes / kCoarse * kLanes;
    sample_e = lane_e_.at_least(count);
    for (int64_t i = 0; i < count; i += kLanes) memcpy(sample_e + i, all_e + i * kCoarse, kLanes * sizeof(float));
    factor *= (float)some / (float)count;
    doubt *= sqrtf(once / factor);  // as far off as with all of them
    start = 1.02f * depth_of_boundary(whole, 4, 2);
    further = 1.05f;
    sample_e = all_e;
    padded = all;
    count = some;
    factor = once;
    doubt = sure;
  }
  const float deep = depth_of_boundary(whole, start, further);
  Bracket bracket = {max_ - deep, HUGE_VALF};
  float mass = mass_below(deep);
  if (number_above() > fmaxf(2048.0f, (float)vocab_ / 48)) {
    // A list of all that may stay would be long: one from both sides, so tight that one guess in 50 is wrong. Around there
    // the logarithm of the mass is nearly a straight line.
    doubt = attempt ? 10 : 2;
    const float other = deep * 0.9f, before = logf(fmaxf(mass, 1e-30f)), after = logf(fmaxf(mass_below(other), 1e-30f));
    const float slope_of_log = (after - before) / (deep - other);
    if (!(slope_of_log > 1e-3f)) return bracket;
    const float centre = deep - (logf(allowed) - before) / slope_of_log;
    mass = mass_below(centre);
    const float half = logf(1 + doubt * error / allowed) / slope_of_log, off = (logf(allowed) - logf(fmaxf(mass, 1e-30f))) / slope_of_log;
    const float from = centre - off + half, below = centre - off - half;
    bracket = {max_ - from, below > 0 ? max_ - below : HUGE_VALF};
  }
  return bracket;
}

// How far an estimate of a mass may be from the weights.
double ChainRow::doubt_of(double mass) const {
  // The weights are of exp(fl(fl(x / divisor) - max)), the estimate of 2^fl(x * fl(factor) - whole). For a token d below the
  // maximum the quotient's rounding moves the exponent by 2^-24 (|max| + d), the difference's by 2^-24 d and the factor's
  // by 2^-24 d; the mean of d under the weights is their entropy less log(mass), so at most log(vocab / mass). Then come
  // the fused step (2^-26), exp and 2^f themselves and the float32 sums of a block: together below 8e-7. The weights' own
  // rounding is half a step each.
  const double deep = log_bound((double)vocab_ / std::max(mass, 1e-9));
  return mass * 1.1 * (0x1p-24 * (fabs((double)max_) + 3 * deep) + 8e-7) + (double)vocab_ / plan_->scale;
}

// Bounds of the weights' sum of the tokens below `from`, from an estimate; false where there is none to be had.
bool ChainRow::rough_below(float from, uint64_t *low, uint64_t *high) {
  if (!kernels_->rough || dense_divisors_ > 1 || !gentle(dense_divisors_ ? divisors_[0] : 1.0f) || fabsf(max_) > 1e4f) return false;
  const double mass = kernels_->rough(&rest(), max_, least(from)), error = doubt_of(mass);
  const uint64_t patched = patched_weights(max_, from);
  *low = patched + (uint64_t)(std::max(0.0, mass - error) * plan_->scale);
  *high = patched + (uint64_t)((mass + error) * plan_->scale) + 1;
  return true;
}

// The same of all that is not listed, from the estimate that came with the scan.
bool ChainRow::rough_rest(uint64_t *low, uint64_t *high) {
  const double mass = scan_mass_, error = doubt_of(mass);
  if (mass < 0 || fabsf(max_) > 1e4f) return false;
  const uint64_t listed = weigh_list(), least = (uint64_t)(std::max(0.0, mass - error) * plan_->scale);
  const uint64_t most = (uint64_t)((mass + error) * plan_->scale) + 1;
  *low = least > listed ? least - listed : 0;
  *high = most > listed ? most - listed : 0;
  return true;
}

// top-p in one pass over the row at most: on peaked rows an estimate of the mass that is not listed does as well as the
// mass, on flat rows the weights above the list and all others are added up together. False where neither is to be had,
// or the whole mass is asked for anyway.
bool ChainRow::quick_top_p(double p) {
  const bool asked = (args_->logp_raw && !plan_->raw_differs) || (args_->logp_processed && !plan_->processed_differs);
  if (asked || total_known_) return false;
  Bracket bracket = hint_;
  if (!hinted_ && !guess_by_lanes(p, &bracket)) bracket = guess(p - 1, 0);
  if (bracket.above == HUGE_VALF) {
    list_from(bracket.from, bracket.above);
    uint64_t low, high;
    if (rough_rest(&low, &high) && settle(p, low, high)) return true;
    if (rough_below(bracket.from, &low, &high) && settle(p, low, high)) return true;
    const uint64_t total = dense_total(), limit = ts_top_p_limit(p, total);
    return limit < total && find(bracket, 0, total, limit);
  }
  if (shallow_top_p(p, bracket)) return true;
  const int64_t blocks = (vocab_ + kBlock - 1) / kBlock;
  const uint64_t above = kernels_->split(&rest(), max_, plan_->bits, least(bracket.from), least(bracket.above),
                                         blocks_.at_least(blocks), between_.at_least(vocab_), between_ends_.at_least(blocks),
                                         &dense_total_);
  dense_total_ += patched_weights(max_, HUGE_VALF);
  const uint64_t limit = ts_top_p_limit(p, dense_total_);
  if (limit >= dense_total_) return false;
  const int64_t n = between_ends_[blocks - 1];
  for (int32_t t = 0; t < dense_divisors_; ++t) kernels_->divide(between_.get(), n, divisors_[(size_t)t]);
  const uint64_t between = kernels_->weights(between_.get(), n, max_, plan_->bits, between_w_.at_least(vocab_)) + list_patches(bracket.from);
  const uint64_t under = dense_total_ - above - between;
  if (under > limit) return false;
  total_known_ = find_between(bracket, above, between, limit - under, limit - under, 0);
  return total_known_;
}

// Drops what top-p drops of the list if that is the same whatever the others weigh within [low, high].
bool ChainRow::settle(double p, uint64_t low, uint64_t high) {
  const uint64_t listed = weigh_list();
  // If the others weigh u, the list may lose limit(listed + u) - u, which falls as u grows but for the roundings of limit.
  constexpr int64_t kRounding = 1 << 12;
  const int64_t least = (int64_t)ts_top_p_limit(p, listed + high) - (int64_t)high - kRounding;
  const int64_t most = (int64_t)ts_top_p_limit(p, listed + low) - (int64_t)low + kRounding;
  if (least < 0 || most >= (int64_t)listed) return false;
  uint64_t before;
  const float threshold = boundary(0, (uint64_t)least, &before);
  const uint64_t weight = ts_weight(ts_exp(threshold - max_), plan_->scale);
  const uint64_t ties = ((uint64_t)least - before) / weight;
  if (((uint64_t)most - before) / weight != ties) return false;
  keep_beyond(threshold, ties);
  form_ = kList;
  return true;
}

// Looks for the boundary of top-p in a bracket; false if it is elsewhere.
bool ChainRow::narrow(Bracket bracket, uint64_t total, uint64_t limit) {
  list_from(bracket.from, bracket.above);
  const bool open = bracket.above == HUGE_VALF;
  const uint64_t above =
      open ? 0 : kernels_->mass(&rest(), max_, plan_->bits, least(bracket.above), blocks_.get());
  return find(bracket, above, total, limit);
}

// The same when the tokens between are listed and the mass above is known.
bool ChainRow::find(Bracket bracket, uint64_t above, uint64_t total, uint64_t limit) {
  const bool open = bracket.above == HUGE_VALF;
  const uint64_t listed = weigh_list(), under = total - above - listed;
  if (under > limit || under + listed <= limit) return false;
  uint64_t before;
  const float threshold = boundary(under, limit, &before);
  if (!open && threshold >= bracket.above) return false;
  threshold_ = threshold;
  ties_ = (limit - before) / ts_weight(ts_exp(threshold - max_), plan_->scale);
  keep_beyond(threshold_, ties_);
  form_ = open ? kList : kAbove;
  from_ = bracket.above;
  between_known_ = false;
  kept_ = above + list_total_;
  return true;
}

// The patched tokens of at least `from` alone as the list; returns their weights' sum.
uint64_t ChainRow::list_patches(float from) {
  n_ = merge_patches(0, from);
  list_weighed_ = false;
  return weigh_list();
}

// top-p of a flat row by the sums of shallow(): those of all that may stay are exact.
bool ChainRow::shallow_top_p(double p, Bracket bracket) {
  constexpr float kLeast = 1.001f * 0x1p23f / (float)(1 << kFraction);
  if (!kernels_->shallow || ts_exp(bracket.from - max_) < kLeast) return false;
  const int64_t blocks = (vocab_ + kBlock - 1) / kBlock;
  TsShallow sums = {blocks_.at_least(blocks), between_.at_least(vocab_), between_w_.at_least(vocab_), between_ends_.at_least(blocks), 0, 0, 0};
  if (!kernels_->shallow(&rest(), max_, plan_->bits, least(bracket.from), least(bracket.above), &sums)) return false;
  const int64_t n = sums.ends[blocks - 1];
  uint64_t between = 0;
  for (int64_t i = 0; i < n; ++i) between += sums.w[i];
  const uint64_t unlisted = sums.near - between, patched = patched_weights(max_, bracket.from);
  const uint64_t low = patched + (unlisted > sums.error ? unlisted - sums.error : 0), high = patched + unlisted + sums.error;
  between += list_patches(bracket.from);
  // Of what is listed limit(all) - u may go where the others weigh u, which falls as u grows but for the roundings of limit.
  constexpr int64_t kRounding = 1 << 12;
  const uint64_t listed = sums.above + between;
  const int64_t most = (int64_t)ts_top_p_limit(p, listed + low) - (int64_t)low + kRounding;
  const int64_t fewest = (int64_t)ts_top_p_limit(p, listed + high) - (int64_t)high - kRounding;
  // Of numbers near 0 a part of the quotient that shallow() lists may have been lost.
  const float smallest = dense_divisors_ ? 0x1p-64f : 0.0f;
  return fewest >= 0 && find_between(bracket, sums.above, between, (uint64_t)fewest, (uint64_t)most, smallest);
}

// The same when the tokens between are in between_, and the mass that goes of them and of the list is from `least` to
// `most`, whichever: false too if that makes a difference. No ids are needed: what is drawn from such a row is looked up in
// its block.
bool ChainRow::find_between(Bracket bracket, uint64_t above, uint64_t between, uint64_t least, uint64_t most, float smallest) {
  if (most >= between) return false;
  const int64_t n = between_ends_[(vocab_ + kBlock - 1) / kBlock - 1];
  float *z = between_.get();
  uint64_t *w = between_w_.get();
  memcpy(z + n, z_.get(), (size_t)n_ * sizeof(float));
  memcpy(w + n, w_.get(), (size_t)n_ * sizeof(uint64_t));
  const int64_t all = n + n_;
  const auto below = [&](float pivot, int64_t *count) { return kernels_->weights_below(z, w, all, pivot, count); };
  int64_t inside = n;
  const uint64_t upto = n_ ? below(bracket.above, &inside) : between;  // patched tokens may be above
  if (upto <= least) return false;
  uint64_t before;
  const float threshold = ts_boundary(z, w, all, {bracket.from, bracket.above, upto, inside}, weighed_.at_least(vocab_), least, &before, below);
  if (fabsf(threshold) < smallest) return false;
  const uint64_t weight = ts_weight(ts_exp(threshold - max_), plan_->scale), ties = (least - before) / weight;
  if ((most - before) / weight != ties) return false;
  // Which of equals go depends on ids, which only the list has: of patched tokens, and by any rule but that of the highest.
  if (ties && rule_ != TS_TIES_HIGH) return false;
  if (ties && std::find(z_.get(), z_.get() + n_, threshold) != z_.get() + n_) return false;
  keep_beyond(threshold, 0);
  form_ = kAbove;
  from_ = bracket.above;
  threshold_ = threshold;
  ties_ = ties;
  kept_ = above + between - before - ties * weight;
  between_known_ = true;
  return true;
}

// ---- draw and log-probabilities ---------------------------------------------------------------------------------

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
