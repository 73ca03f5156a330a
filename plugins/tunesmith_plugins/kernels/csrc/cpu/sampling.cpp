// The sampling chain of one row after the other: edits, truncations, one draw, three log-probabilities.
//
// A row is kept as float32 values z (dropped tokens are -inf) and, once a step needs them, as e = exp(z - max).
// Masses are sums of integer weights, so they depend on no order of summation. Truncations never remove the
// maximum, so e stays valid until the next edit.
#include <math.h>

#include <algorithm>
#include <vector>

#include "error.h"
#include "isa.h"
#include "load.h"
#include "numeric.h"
#include "tunesmith.h"

namespace {

bool is_edit(int32_t op) { return op == TS_REPETITION_PENALTY || op == TS_TEMPERATURE; }

double step_value(const ts_step &step, int64_t row) {
  const int64_t at = row * step.stride;
  return step.dtype == TS_I64 ? (double)((const int64_t *)step.values)[at] : ((const double *)step.values)[at];
}

const char *op_name(int32_t op) {
  static const char *const names[] = {"repetition_penalty", "temperature", "top_k", "top_p", "min_p"};
  return names[op];
}

int32_t check(const ts_sample_args &a) {
  if (a.batch < 0 || a.vocab < 1 || a.vocab > INT32_MAX)
    return ts_fail(TS_INVALID, "logits must be (batch, vocab) with vocab in [1, 2^31), not (%lld, %lld)",
                   (long long)a.batch, (long long)a.vocab);
  if (a.dtype < TS_F32 || a.dtype > TS_F16) return ts_fail(TS_UNSUPPORTED, "logits must be float32, bfloat16 or float16");
  if (a.batch && (!a.logits || !a.status)) return ts_fail(TS_INVALID, "logits and status must not be null");
  if (a.batch && a.token && !a.greedy && (!a.seed || !a.stream || !a.position))
    return ts_fail(TS_INVALID, "a categorical draw needs seed, stream and position");
  if (!a.token && (a.logp_raw || a.logp_processed || a.logp_truncated))
    return ts_fail(TS_INVALID, "log-probabilities are those of the drawn token: token must not be null");
  if (a.draw < 0 || a.draw > UINT32_MAX) return ts_fail(TS_INVALID, "draw must be in [0, 2^32)");
  for (int64_t s = 0; s < a.step_count; ++s) {
    const ts_step &step = a.steps[s];
    if (step.op < TS_REPETITION_PENALTY || step.op > TS_MIN_P)
      return ts_fail(TS_UNSUPPORTED, "step %lld: unknown operation %d", (long long)s, (int)step.op);
    if ((step.dtype != TS_F64 && step.dtype != TS_I64) || (a.batch && !step.values))
      return ts_fail(TS_INVALID, "step %lld (%s): values must be float64 or int64", (long long)s, op_name(step.op));
    if (step.op == TS_REPETITION_PENALTY && a.history_width > 0 && !a.history)
      return ts_fail(TS_INVALID, "step %lld (repetition_penalty): history is missing", (long long)s);
    for (int64_t row = 0; row < a.batch; ++row) {
      const double v = step_value(step, row);
      const bool fits = step.op == TS_TOP_K ? v == floor(v) && fabs(v) < 0x1p53
                        : is_edit(step.op)  ? (float)v > 0 && (float)v < HUGE_VALF
                                            : v >= 0 && v <= 1;
      if (!fits)
        return ts_fail(TS_INVALID, "step %lld (%s), row %lld: %g is outside the allowed range, %s", (long long)s,
                       op_name(step.op), (long long)row, v,
                       step.op == TS_TOP_K ? "an integer" : is_edit(step.op) ? "above 0 and finite in float32" : "0 to 1");
    }
  }
  for (int64_t row = 0; row < a.batch; ++row) {
    if (a.token && !a.greedy && (a.position[row] < 0 || a.position[row] > UINT32_MAX))
      return ts_fail(TS_INVALID, "row %lld: position %lld is outside [0, 2^32)", (long long)row, (long long)a.position[row]);
    if (a.history_lengths && (a.history_lengths[row] < 0 || a.history_lengths[row] > a.history_width))
      return ts_fail(TS_INVALID, "row %lld: history length %lld is outside [0, %lld]", (long long)row,
                     (long long)a.history_lengths[row], (long long)a.history_width);
  }
  return TS_OK;
}

struct Mass {
  float max = 0;
  uint64_t total = 0;
};

class Chain {
 public:
  Chain(const ts_sample_args &args, const TsKernels &kernels)
      : args_(args), kernels_(kernels), vocab_(args.vocab), scale_(ldexp(1.0, ts_weight_bits(args.vocab))),
        z_((size_t)args.vocab), e_((size_t)args.vocab) {
    int64_t first_truncation = args.step_count;
    for (int64_t s = args.step_count - 1; s >= 0; --s) {
      if (!is_edit(args.steps[s].op)) first_truncation = s;
      if (args.steps[s].op == TS_REPETITION_PENALTY) marks_.assign(((size_t)vocab_ + 63) / 64, 0);
      if (is_edit(args.steps[s].op) && s > last_edit_) last_edit_ = s;
    }
    // The processed row has every edit and no truncation: where an edit follows a truncation it is a row of its own.
    if (args.logp_processed && last_edit_ > first_truncation) processed_.resize((size_t)vocab_);
  }

  void run(int64_t row) {
    row_ = row;
    const void *source = ts_row(args_.logits, row, args_.row_stride, args_.dtype);
    ts_load_row(source, vocab_, args_.dtype, z_.data());
    known_ = false;
    uint8_t has_nan = 0;
    max_ = kernels_.row_max(z_.data(), vocab_, &has_nan);
    status_ = has_nan ? TS_ROW_NAN : TS_ROW_OK;
    look_at_maximum();
    if (status_ != TS_ROW_OK) return give_up();

    Mass raw, processed;
    if (args_.logp_raw) raw = mass();
    const bool apart = !processed_.empty();
    if (apart) memcpy(processed_.data(), z_.data(), z_.size() * sizeof(float));
    if (args_.logp_processed && last_edit_ < 0) processed = mass();
    for (int64_t s = 0; s < args_.step_count; ++s) {
      const ts_step &step = args_.steps[s];
      const double value = step_value(step, row);
      switch (step.op) {
        case TS_REPETITION_PENALTY:
          penalise(z_.data(), (float)value);
          if (apart) penalise(processed_.data(), (float)value);
          break;
        case TS_TEMPERATURE:
          kernels_.divide(z_.data(), vocab_, (float)value);
          if (apart) kernels_.divide(processed_.data(), vocab_, (float)value);
          break;
        case TS_TOP_K:
          top_k(value);
          break;
        case TS_TOP_P:
          top_p(value);
          break;
        case TS_MIN_P:
          min_p(value);
          break;
      }
      if (is_edit(step.op)) {
        known_ = false;
        max_ = kernels_.row_max(z_.data(), vocab_, &has_nan);
        look_at_maximum();
        if (status_ != TS_ROW_OK) return give_up();
      }
      if (args_.logp_processed && s == last_edit_ && !apart) processed = mass();
    }
    args_.status[row] = TS_ROW_OK;
    if (args_.out_logits) memcpy(args_.out_logits + row * vocab_, z_.data(), z_.size() * sizeof(float));
    if (!args_.token) return;

    const int64_t token = args_.greedy ? first_maximum() : draw();
    args_.token[row] = token;
    const float z = z_[(size_t)token];
    if (args_.logp_truncated) {
      const Mass kept = mass();
      args_.logp_truncated[row] = ts_logp(z, kept.max, kept.total, scale_);
    }
    if (args_.logp_raw)
      args_.logp_raw[row] = ts_logp(ts_load_one(source, token, args_.dtype), raw.max, raw.total, scale_);
    if (args_.logp_processed) {
      if (apart) {
        processed.max = kernels_.row_max(processed_.data(), vocab_, &has_nan);
        const bool overflow = processed.max == HUGE_VALF;  // a dropped token that a later edit sent to infinity
        if (!overflow) processed.total = kernels_.exp_row(processed_.data(), vocab_, processed.max, scale_, e_.data());
        args_.logp_processed[row] = overflow ? NAN : ts_logp(processed_[(size_t)token], processed.max, processed.total, scale_);
      } else {
        args_.logp_processed[row] = ts_logp(z, processed.max, processed.total, scale_);
      }
    }
  }

 private:
  void look_at_maximum() {
    if (status_ != TS_ROW_OK) return;
    if (max_ == HUGE_VALF) status_ = TS_ROW_POSINF;
    if (max_ == -HUGE_VALF) status_ = TS_ROW_EMPTY;
  }

  void give_up() {
    args_.status[row_] = status_;
    if (args_.token) args_.token[row_] = -1;
    float *const outputs[] = {args_.logp_raw, args_.logp_processed, args_.logp_truncated};
    for (float *output : outputs) {
      if (output) output[row_] = NAN;
    }
    if (args_.out_logits) {
      for (int64_t i = 0; i < vocab_; ++i) args_.out_logits[row_ * vocab_ + i] = NAN;
    }
  }

  Mass mass() {
    if (!known_) {
      total_ = kernels_.exp_row(z_.data(), vocab_, max_, scale_, e_.data());
      known_ = true;
    }
    return {max_, total_};
  }

  void drop(int64_t i) {
    if (known_) {
      total_ -= ts_weight(e_[(size_t)i], scale_);
      e_[(size_t)i] = 0;
    }
    z_[(size_t)i] = -HUGE_VALF;
  }

  // Keskar et al. (2019): logits of tokens seen before are divided by the penalty, or multiplied where negative.
  void penalise(float *z, float penalty) {
    const int64_t length = args_.history_lengths ? args_.history_lengths[row_] : args_.history_width;
    const int64_t *ids = args_.history + row_ * args_.history_width;
    for (int64_t j = 0; j < length; ++j) {
      const int64_t id = ids[j];
      if (id < 0 || id >= vocab_) continue;
      uint64_t &word = marks_[(size_t)id / 64];
      const uint64_t bit = uint64_t(1) << (id % 64);
      if (word & bit) continue;
      word |= bit;
      z[id] = z[id] < 0 ? z[id] * penalty : z[id] / penalty;
    }
    for (int64_t j = 0; j < length; ++j) {
      if (ids[j] >= 0 && ids[j] < vocab_) marks_[(size_t)ids[j] / 64] = 0;
    }
  }

  // Finds, in three levels of 11, 11 and 10 bits, the smallest key in ascending order at which the running sum of
  // measure(i) goes beyond limit; *below is the sum of all smaller keys. The sum over the row must exceed limit.
  template <typename Measure>
  uint32_t key_beyond(uint64_t limit, uint64_t *below, Measure measure) const {
    static const int shifts[] = {21, 10, 0}, widths[] = {11, 11, 10};
    uint32_t prefix = 0;
    uint64_t running = 0;
    std::vector<uint64_t> buckets(2048);
    for (int level = 0; level < 3; ++level) {
      const int shift = shifts[level], high = shift + widths[level];
      const uint32_t size = 1u << widths[level];
      std::fill(buckets.begin(), buckets.end(), 0);
      for (int64_t i = 0; i < vocab_; ++i) {
        const uint32_t key = ts_order_key(z_[(size_t)i]);
        if (level == 0 || key >> high == prefix >> high) buckets[(key >> shift) & (size - 1)] += measure(i);
      }
      uint32_t bucket = 0;
      while (running + buckets[bucket] <= limit) running += buckets[bucket++];
      prefix |= bucket << shift;
    }
    *below = running;
    return prefix;
  }

  // Keeps every token that ties with the k-th largest; k below 1 keeps all.
  void top_k(double k) {
    if (k < 1 || k >= (double)vocab_) return;
    uint64_t below;
    const uint32_t threshold = key_beyond((uint64_t)(vocab_ - (int64_t)k), &below, [](int64_t) { return uint64_t(1); });
    for (int64_t i = 0; i < vocab_; ++i) {
      if (ts_order_key(z_[(size_t)i]) < threshold) drop(i);
    }
  }

  // In ascending order (ties: lowest index first), drops tokens while the mass so far is at most (1 - p) of the
  // whole, but never the last one.
  void top_p(double p) {
    if (p >= 1) return;
    const uint64_t total = mass().total, limit = ts_top_p_limit(p, total);
    uint32_t threshold = ts_order_key(max_);
    uint64_t ties = 0;
    if (limit >= total) {
      for (int64_t i = 0; i < vocab_; ++i) ties += ts_order_key(z_[(size_t)i]) == threshold;
      ties -= 1;
    } else {
      uint64_t below;
      threshold = key_beyond(limit, &below, [this](int64_t i) { return ts_weight(e_[(size_t)i], scale_); });
      for (int64_t i = 0; i < vocab_; ++i) {
        if (ts_order_key(z_[(size_t)i]) == threshold) {
          ties = (limit - below) / ts_weight(e_[(size_t)i], scale_);
          break;
        }
      }
    }
    for (int64_t i = 0; i < vocab_; ++i) {
      const uint32_t key = ts_order_key(z_[(size_t)i]);
      if (key < threshold || (key == threshold && ties && ties--)) drop(i);
    }
  }

  // Nguyen et al. (2024): drops tokens less likely than p times the likeliest.
  void min_p(double p) {
    mass();
    for (int64_t i = 0; i < vocab_; ++i) {
      if (e_[(size_t)i] < p) drop(i);
    }
  }

  int64_t first_maximum() const {
    int64_t i = 0;
    while (z_[(size_t)i] != max_) ++i;
    return i;
  }

  int64_t draw() {
    const uint64_t bits = ts_uniform_bits(args_.seed[row_], args_.stream[row_], args_.position[row_], args_.draw);
    const uint64_t target = ts_mulhi(bits, mass().total);
    uint64_t running = 0;
    int64_t i = 0;
    for (;; ++i) {
      running += ts_weight(e_[(size_t)i], scale_);
      if (running > target) return i;
    }
  }

  const ts_sample_args &args_;
  const TsKernels &kernels_;
  const int64_t vocab_;
  const double scale_;
  int64_t last_edit_ = -1;
  std::vector<float> z_, processed_;
  std::vector<double> e_;
  std::vector<uint64_t> marks_;
  int64_t row_ = 0;
  uint8_t status_ = TS_ROW_OK;
  float max_ = 0;
  bool known_ = false;  // whether e_ and total_ belong to the present z_ and max_
  uint64_t total_ = 0;
};

}  // namespace

extern "C" int32_t ts_sample(const ts_sample_args *args) {
  return ts_guard([args]() -> int32_t {
    if (!args) return ts_fail(TS_INVALID, "no arguments");
    const int32_t code = check(*args);
    if (code != TS_OK) return code;
    const TsKernels *kernels = ts_kernels();
    if (!kernels) return TS_UNSUPPORTED;
    if (args->batch == 0) return TS_OK;
    Chain chain(*args, *kernels);
    for (int64_t row = 0; row < args->batch; ++row) chain.run(row);
    return TS_OK;
  });
}

extern "C" int32_t ts_exp_row(const float *z, int64_t n, float max, int64_t vocab, double *e, uint64_t *total) {
  const TsKernels *kernels = ts_kernels();
  if (!kernels) return TS_UNSUPPORTED;
  if (n < 0 || vocab < 1 || !total || (n && (!z || !e))) return ts_fail(TS_INVALID, "nothing to compute or to write to");
  *total = kernels->exp_row(z, n, max, ldexp(1.0, ts_weight_bits(vocab)), e);
  return TS_OK;
}
