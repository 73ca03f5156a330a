// Steps that name single tokens: edits, bans, lists of what is allowed, and masks.
#include <float.h>
#include <math.h>
#include <string.h>

#include <algorithm>

#include "chain_row.h"
#include "edits.h"
#include "load.h"
#include "ranges.h"

// ---- what a step may hold ---------------------------------------------------------------------------------------

bool ts_fits(int32_t op, double v) { return ts_in_range(op, v); }

const char *ts_range(int32_t op) {
  switch (op) {
    case TS_REPETITION_PENALTY:
    case TS_TEMPERATURE:
    case TS_DYNAMIC_TEMPERATURE:
      return "above 0 and finite in float32";
    case TS_TOP_K:
    case TS_TOP_K_LOW:
      return "an integer";
    case TS_PRESENCE_PENALTY:
    case TS_FREQUENCY_PENALTY:
    case TS_BIAS:
    case TS_WATERMARK:
      return "finite in float32";
    case TS_MIROSTAT:
      return "finite";
    case TS_LENGTH_DECAY:
      return "at least -1 and finite";
    case TS_TOP_N_SIGMA:
      return "0 or more and finite";
    case TS_BAN:
    case TS_ALLOW:
    case TS_MASK:
      return "0 or 1";
    default:
      return "0 to 1";
  }
}

bool ts_second_fits(int32_t op, int32_t column, double v) { return ts_second_in_range(op, column, v); }

const char *ts_second_range(int32_t op, int32_t column) {
  switch (op) {
    case TS_XTC:
      return "0 or 1";
    case TS_WATERMARK:
      return "0 to 1";
    case TS_DYNAMIC_TEMPERATURE:
      return column == 0 ? "above 0 and finite in float32" : "an exponent above 0";
    default:
      return op == TS_TOP_P_TIES && column == 1 ? "a rule for ties, 0, 1 or 2" : "an integer of 1 or more";
  }
}

bool ts_names_tokens(int32_t op) {
  return op == TS_REPETITION_PENALTY || (op >= TS_PRESENCE_PENALTY && op <= TS_ALLOW);
}

const char *ts_list_fault(const ts_step &step, int64_t batch) {
  if (step.op == TS_WATERMARK) return ts_watermark_fault(step, batch);
  if (!ts_names_tokens(step.op) && step.op != TS_MASK) return step.ids || step.amounts ? "names no tokens" : nullptr;
  if (!step.ids && step.width != 0) return "ids are missing";
  if (!step.ids && step.op > TS_FREQUENCY_PENALTY && batch) return "ids are missing";
  if (step.width < 0) return "the width of ids is negative";
  if (!step.amounts) return nullptr;
  if (step.op != TS_BIAS) return "takes no amounts";
  for (int64_t row = 0; row < (step.amounts_stride ? batch : batch ? 1 : 0); ++row) {
    const float *amounts = step.amounts + row * step.amounts_stride;
    for (int64_t j = 0; j < step.width; ++j) {
      if (!(fabsf(amounts[j]) <= FLT_MAX)) return "amounts must be finite";
    }
  }
  return nullptr;
}

const int64_t *ts_listed(const ts_sample_args &args, const ts_step &step, int64_t row, int64_t *count) {
  if (step.ids) {
    *count = step.width;
    return (const int64_t *)step.ids + row * step.ids_stride;
  }
  *count = args.history_lengths ? args.history_lengths[row] : args.history_width;
  return args.history + row * args.history_width;
}

// ---- patches ----------------------------------------------------------------------------------------------------

// Marks every token that some step names, those of the history first; begin() reads their values.
void ChainRow::gather() {
  stamp_ = 0;
  const ts_step history = {};
  const auto named = [this](const ts_step &step) {
    return ts_names_tokens(step.op) && step.op != TS_ALLOW && step.ids && (step.op != TS_BAN || ts_step_value(step, row_) != 0);
  };
  int64_t count, most = 0;
  if (plan_->history) {
    ts_listed(*args_, history, row_, &count);
    most += count;
  }
  for (int64_t s = 0; s < args_->step_count; ++s) most += named(args_->steps[s]) ? args_->steps[s].width : 0;
  patches_.begin(vocab_, std::min(most, vocab_));
  const auto add = [this, &count](const ts_step &step) {
    const int64_t *ids = ts_listed(*args_, step, row_, &count);
    patches_.add(ids, count);
  };
  if (plan_->history) add(history);
  history_patches_ = patches_.size();
  for (int64_t s = 0; s < args_->step_count; ++s) {
    if (named(args_->steps[s])) add(args_->steps[s]);
  }
}

// Finds the patches that a step names, each once, and the sums of their amounts.
void ChainRow::touch(const ts_step &step) {
  int64_t count;
  const int64_t *ids = ts_listed(*args_, step, row_, &count);
  const float *amounts = step.amounts ? step.amounts + row_ * step.amounts_stride : nullptr;
  touched_.clear();
  patches_.index();
  if (++stamp_ == 1) stamps_.assign((size_t)patches_.size(), Touch{});
  for (int64_t j = 0; j < count; ++j) {
    if (ids[j] < 0 || ids[j] >= vocab_) continue;
    const int64_t patch = patches_.find((int32_t)ids[j]);
    Touch &touch = stamps_[(size_t)patch];
    if (touch.stamp != stamp_) {
      touch = {stamp_, 0};
      touched_.push_back((int32_t)patch);
    }
    touch.sum += amounts ? amounts[j] : 1.0f;
  }
}

// Where a token is in the list, or -1.
int64_t ChainRow::place_of(int32_t id) {
  const int32_t *end = ids_.get() + n_, *found = std::lower_bound(ids_.get(), ids_.get() + n_, id);
  return found != end && *found == id ? found - ids_.get() : -1;
}

void ChainRow::edit_tokens(const ts_step &step) {
  const double value = ts_step_value(step, row_);
  touch(step);
  for (const int32_t patch : touched_) {
    const float sum = stamps_[(size_t)patch].sum;
    if (processed_asked()) patches_.processed[patch] = ts_edited(step.op, patches_.processed[patch], value, sum);
    if (form_ == kDense) {
      patches_.z[patch] = ts_edited(step.op, patches_.z[patch], value, sum);
    } else {
      const int64_t place = place_of(patches_.ids[patch]);
      if (place >= 0) z_[place] = ts_edited(step.op, z_[place], value, sum);
    }
  }
  if (form_ != kDense) filter([this](int64_t i) { return z_[i] > -HUGE_VALF; });
}

// ---- removals ---------------------------------------------------------------------------------------------------

void ChainRow::remove(const ts_step &step) {
  if (form_ == kAbove) list_whole();
  if (step.op == TS_BAN) {
    ban(step);
  } else if (step.op == TS_ALLOW) {
    int64_t count;
    const int64_t *ids = ts_listed(*args_, step, row_, &count);
    chosen_.clear();
    for (int64_t j = 0; j < count; ++j) {
      if (ids[j] >= 0 && ids[j] < vocab_) chosen_.push_back((int32_t)ids[j]);
    }
    std::sort(chosen_.begin(), chosen_.end());
    chosen_.erase(std::unique(chosen_.begin(), chosen_.end()), chosen_.end());
    if (form_ == kDense) list_chosen();
    else filter([this](int64_t i) { return std::binary_search(chosen_.begin(), chosen_.end(), ids_[i]); });
  } else {
    const int32_t *words = (const int32_t *)step.ids + row_ * step.ids_stride;
    const int64_t count = std::min(step.width, (vocab_ + 31) / 32);
    if (form_ != kDense) {
      filter([=](int64_t i) { return ts_allowed(words, count, ids_[i]); });
    } else {
      // Few tokens are listed one by one; of many the row stays dense.
      chosen_.clear();
      const size_t few = (size_t)(vocab_ / 16);
      for (int64_t w = 0; w < count && chosen_.size() <= few; ++w) {
        int64_t id = 32 * w;
        for (uint32_t bits = (uint32_t)words[w]; bits && id < vocab_; bits >>= 1, ++id) {
          if (bits & 1) chosen_.push_back((int32_t)id);
        }
      }
      if (chosen_.size() <= few) list_chosen();
      else hide(words, count);
    }
  }
  remax();
}

void ChainRow::ban(const ts_step &step) {
  touch(step);
  for (const int32_t patch : touched_) {
    if (form_ == kDense) {
      patches_.z[patch] = -HUGE_VALF;
    } else {
      const int64_t place = place_of(patches_.ids[patch]);
      if (place >= 0) z_[place] = -HUGE_VALF;
    }
  }
  if (form_ != kDense) filter([this](int64_t i) { return z_[i] > -HUGE_VALF; });
}

// Turns a dense row into the list of chosen_, which is in order.
void ChainRow::list_chosen() {
  n_ = 0;
  if (plan_->patches) patches_.index();
  for (const int32_t id : chosen_) {
    const int64_t patch = plan_->patches ? patches_.find(id) : -1;
    const float z = patch >= 0 ? patches_.z[patch] : passed_over(id) ? -HUGE_VALF : value_of(ts_load_one(source_, id, args_->dtype), dense_divisors_);
    if (!(z > -HUGE_VALF)) continue;
    ids_[n_] = id;
    z_[n_++] = z;
  }
  form_ = kList;
  list_weighed_ = false;
}

// Removes what a mask does not allow from a dense row: it is passed over, as a patched token is, and has no patch.
void ChainRow::hide(const int32_t *words, int64_t count) {
  const int64_t blocks = (vocab_ + kBlock - 1) / kBlock;
  const uint16_t *before = view_.marks;
  uint16_t *marks = hidden_.at_least(blocks * kBlockGroups);
  for (int64_t g = 0; g < blocks * kBlockGroups; ++g) {
    const int64_t word = g * kLanes / 32;
    const uint32_t allowed = word < count ? (uint32_t)words[word] >> (g * kLanes % 32) : 0;
    marks[g] = (uint16_t)((before ? before[g] : 0) | (uint16_t)~allowed);
  }
  if (plan_->patches) {
    for (int64_t i = 0; i < patches_.size(); ++i) {
      if (!ts_allowed(words, count, patches_.ids[i])) patches_.z[i] = -HUGE_VALF;
    }
  }
  show_marks();
}

// Has the loops over the row pass over what hidden_ marks.
void ChainRow::show_marks() {
  const int64_t blocks = (vocab_ + kBlock - 1) / kBlock;
  const uint16_t *marks = hidden_.get();
  uint8_t *flags = hidden_flags_.at_least(blocks);
  for (int64_t b = 0; b < blocks; ++b) {
    uint16_t any = 0;
    for (int64_t g = b * kBlockGroups; g < (b + 1) * kBlockGroups; ++g) any |= marks[g];
    flags[b] = any != 0;
  }
  view_.marks = marks;
  view_.flagged = flags;
  uint8_t has_nan = 0;
  rest_max_ = kernels_->scan[view_.dtype](&view_, lanes_.get(), &has_nan);
}
