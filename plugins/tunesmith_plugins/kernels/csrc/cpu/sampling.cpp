// The sampling chain: checks the arguments and shares out the rows; chain_row.cpp does the work of one.
#include <math.h>

#include <atomic>

#include "chain_row.h"
#include "error.h"
#include "numeric.h"
#include "pool.h"
#include "tunesmith.h"
#include "warm.h"

namespace {

const char *op_name(int32_t op) {
  static const char *const names[TS_OP_COUNT] = {
      "repetition_penalty", "temperature", "top_k", "top_p", "min_p", "presence_penalty",
      "frequency_penalty", "bias", "length_decay", "ban", "allow", "mask",
      "epsilon", "eta", "top_a", "top_n_sigma", "typical", "top_h", "xtc", "dynamic_temperature",
      "watermark", "top_k_low", "top_p_ties", "mirostat"};
  return names[op];
}

TS_WARM int32_t check(const ts_sample_args &a) {
  if (a.batch < 0 || a.vocab < 1 || a.vocab > INT32_MAX)
    return ts_fail(TS_INVALID, "logits must be (batch, vocab) with vocab in [1, 2^31), not (%lld, %lld)",
                   (long long)a.batch, (long long)a.vocab);
  if (a.dtype < TS_F32 || a.dtype > TS_F16) return ts_fail(TS_UNSUPPORTED, "logits must be float32, bfloat16 or float16");
  if (a.batch && (!a.logits || !a.status)) return ts_fail(TS_INVALID, "logits and status must not be null");
  if (a.batch && a.token && !a.greedy && (!a.seed || !a.stream || !a.position))
    return ts_fail(TS_INVALID, "a categorical draw needs seed, stream and position");
  if (!a.token && (a.logp_raw || a.logp_processed || a.logp_truncated))
    return ts_fail(TS_INVALID, "log-probabilities are those of the drawn token: token must not be null");
  if (a.top_count < 0 || (a.top_count && !a.token))
    return ts_fail(TS_INVALID, "the likeliest tokens come with a draw: top_count must not be negative, token not null");
  if (!a.top_raw_ids != !a.top_raw || !a.top_processed_ids != !a.top_processed || !a.top_truncated_ids != !a.top_truncated)
    return ts_fail(TS_INVALID, "ids and log-probabilities of the likeliest tokens come together");
  if (a.step_count < 0 || (a.step_count && !a.steps)) return ts_fail(TS_INVALID, "steps must not be null");
  if (a.draw < 0 || a.draw > UINT32_MAX) return ts_fail(TS_INVALID, "draw must be in [0, 2^32)");
  for (int64_t s = 0; s < a.step_count; ++s) {
    const ts_step &step = a.steps[s];
    if (step.op < 0 || step.op >= TS_OP_COUNT)
      return ts_fail(TS_UNSUPPORTED, "step %lld: unknown operation %d", (long long)s, (int)step.op);
    if ((step.dtype != TS_F64 && step.dtype != TS_I64) || (a.batch && !step.values))
      return ts_fail(TS_INVALID, "step %lld (%s): values must be float64 or int64", (long long)s, op_name(step.op));
    if ((ts_needs_history(step) || step.op == TS_WATERMARK) && a.history_width > 0 && !a.history)
      return ts_fail(TS_INVALID, "step %lld (%s): history is missing", (long long)s, op_name(step.op));
    if (const char *fault = ts_list_fault(step, a.batch))
      return ts_fail(TS_INVALID, "step %lld (%s): %s", (long long)s, op_name(step.op), fault);
    if (ts_seconds(step.op)) {
      if (a.batch && !step.second)
        return ts_fail(TS_INVALID, "step %lld (%s): the second parameter is missing", (long long)s, op_name(step.op));
      for (int64_t row = 0; row < a.batch; ++row) {
        for (int32_t column = 0; column < ts_seconds(step.op); ++column) {
          const double v = step.second[row * step.second_stride + column];
          if (!ts_second_fits(step.op, column, v))
            return ts_fail(TS_INVALID, "step %lld (%s), row %lld: %g is outside the allowed range of its second parameter, %s",
                           (long long)s, op_name(step.op), (long long)row, v, ts_second_range(step.op, column));
        }
      }
    }
    for (int64_t row = 0; row < a.batch; ++row) {
      const double v = ts_step_value(step, row);
      if (!ts_fits(step.op, v))
        return ts_fail(TS_INVALID, "step %lld (%s), row %lld: %g is outside the allowed range, %s", (long long)s,
                       op_name(step.op), (long long)row, v,
                       ts_range(step.op));
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

// Where code is. What a function does with whole blocks stands first in it; the rest, marked tokens and the end of a row, is
// as long again.
struct Code {
  const void *begin;
  int64_t bytes;
};

TS_WARM ChainRow &worker() {
  static thread_local ChainRow row;
  return row;
}

// Asks for what only some chains run: a penalty of the history, top-p on a dense row, top-p or min-p on a list. Sooner, from
// ts_warm_code, it helps less.
TS_WARM void ask_for_steps(const ts_sample_args &a, const TsSampling &kernels) {
  bool dense = true, edits = false, top_p = false, lists = false;
  for (int64_t s = 0; s < a.step_count; ++s) {
    const int32_t op = a.steps[s].op;
    edits |= ts_needs_history(a.steps[s]);
    if (op == TS_TOP_P || op == TS_TOP_P_TIES) (dense ? top_p : lists) = true;
    if (op == TS_MIN_P) lists = true;
    if (!ts_is_edit(op)) dense = false;
  }
  if (edits) ts_ask_for(TS_WARM_BOUNDS(ts_warm_edits));
  if (top_p | lists) {
    ts_ask_for(TS_WARM_BOUNDS(ts_warm_lists));
    ts_ask_for((const void *)kernels.exps, 1792);
    ts_ask_for((const void *)kernels.weights, 2880);
  }
  if (top_p) {
    ts_ask_for(TS_WARM_BOUNDS(ts_warm_top_p));
    ts_ask_for((const void *)kernels.scan_rough[a.dtype], 6336);
    ts_ask_for((const void *)kernels.below, 1536);
  }
}

// Rows of a call shared among threads; the code of the first one that fails, or TS_OK.
struct Call {
  const ts_sample_args &args;
  ChainPlan plan;
  const TsSampling &kernels;
  std::atomic<int32_t> code{TS_OK};

  int32_t run_row(int64_t row) const {
    return ts_guard([this, row]() -> int32_t {
      worker().run(args, plan, kernels, row);
      return TS_OK;
    });
  }
};

// Waking a thread takes some 50 us, one that waits for work takes some up at once.
double worth_sharing() { return ts_has_team() ? 25 : 200; }

// What a call takes is known roughly, in microseconds: a third of a nanosecond for a weight, a tenth for a look.
double cost_of(const ts_sample_args &a) {
  bool weighs = a.logp_raw || a.logp_processed || a.top_count || a.step_count == 0;
  for (int64_t s = 0; s < a.step_count && !weighs; ++s) {
    if (a.steps[s].op == TS_TOP_P || a.steps[s].op >= TS_EPSILON) weighs = true;
    if (!ts_is_edit(a.steps[s].op) && a.steps[s].op != TS_BAN && a.steps[s].op != TS_MASK) break;
  }
  return (double)a.batch * (double)a.vocab * (weighs ? .6e-3 : .15e-3);
}

}  // namespace

extern "C" TS_WARM int32_t ts_sample(const ts_sample_args *args) {
  return ts_guard([args]() -> int32_t {
    if (!args) return ts_fail(TS_INVALID, "no arguments");
    const int32_t checked = check(*args);
    if (checked != TS_OK) return checked;
    const TsSampling *kernels = ts_sampling();
    if (!kernels) return TS_UNSUPPORTED;
    ask_for_steps(*args, *kernels);
    ts_ask_for(&worker(), sizeof(ChainRow));
    Call call = {*args, ChainPlan(*args), *kernels};
    const double cost = args->threads > 1 && args->batch > 1 ? cost_of(*args) : 0;
    if (cost > worth_sharing()) {
      call.plan.in_order = false;
      ts_parallel(
          args->threads, args->batch, cost,
          [](void *context, int64_t row) {
            Call &shared = *(Call *)context;
            const int32_t code = shared.run_row(row);
            if (code != TS_OK) shared.code.store(code, std::memory_order_relaxed);
          },
          &call);
      const int32_t code = call.code.load(std::memory_order_relaxed);
      if (code != TS_OK) return ts_fail(code, "a thread ran out of memory, or failed otherwise, in a row of the batch");
      return TS_OK;
    }
    for (int64_t row = 0; row < args->batch; ++row) {
      const int32_t code = call.run_row(row);
      if (code != TS_OK) return code;
    }
    return TS_OK;
  });
}

extern "C" TS_WARM int32_t ts_sample_words(const int64_t *w, int64_t count) {
  if (!w || count != 21) return ts_fail(TS_INVALID, "ts_sample_words takes 21 words, not %lld", (long long)count);
  ts_sample_args a = {};
  a.steps = (const ts_step *)w[0];
  a.step_count = w[1];
  a.greedy = (int32_t)w[2];
  a.draw = w[3];
  a.threads = (int32_t)w[4];
  a.logits = (const void *)w[5];
  a.batch = w[6];
  a.vocab = w[7];
  a.row_stride = w[8];
  a.dtype = (int32_t)w[9];
  a.seed = (const int64_t *)w[10];
  a.stream = (const int64_t *)w[11];
  a.position = (const int64_t *)w[12];
  a.history = (const int64_t *)w[13];
  a.history_lengths = (const int64_t *)w[14];
  a.history_width = w[15];
  a.token = (int64_t *)w[16];
  a.status = (uint8_t *)w[17];
  a.logp_raw = (float *)w[18];
  a.logp_processed = (float *)w[19];
  a.logp_truncated = (float *)w[20];
  return ts_sample(&a);
}

extern "C" int32_t ts_uniform(const int64_t *seed, const int64_t *stream, const int64_t *position, int64_t draw, double *out,
                              int64_t rows) {
  if (rows < 0 || (rows && (!seed || !stream || !position || !out)))
    return ts_fail(TS_INVALID, "noise of %lld rows needs seed, stream, position and out", (long long)rows);
  for (int64_t i = 0; i < rows; ++i) out[i] = (double)(ts_uniform_bits(seed[i], stream[i], position[i], draw) >> 11) * 0x1p-53;
  return TS_OK;
}

extern "C" int32_t ts_exp_row(const float *z, int64_t n, float max, int64_t vocab, float *e, uint64_t *total) {
  return ts_guard([=]() -> int32_t {
    const TsSampling *kernels = ts_sampling();
    if (!kernels) return TS_UNSUPPORTED;
    if (n < 0 || vocab < 1 || !total || (n && (!z || !e))) return ts_fail(TS_INVALID, "nothing to compute or to write to");
    const TsRow row = {z, n, nullptr, nullptr, nullptr, 0, TS_F32};
    kernels->exps(z, n, max, 1, e);
    *total = kernels->mass(&row, max, ts_weight_bits(vocab), -HUGE_VALF, nullptr);
    return TS_OK;
  });
}

extern "C" int32_t ts_warm_code(int64_t *words) {
  const TsSampling *kernels = ts_sampling();
  if (!kernels) return TS_UNSUPPORTED;
  Code ranges[TS_WARM_RANGES] = {{TS_WARM_BOUNDS(ts_warm)},
                                 {(const void *)kernels->divide, 448},
                                 {(const void *)kernels->kth, 1344},
                                 {(const void *)kernels->kth_of_few, 256},
                                 {(const void *)kernels->kth_of_lanes, 256}};
  for (int dtype = 0; dtype < 3; ++dtype) {
    Code *const typed = ranges + TS_WARM_COMMON + dtype * TS_WARM_TYPED;
    typed[0] = {(const void *)kernels->scan[dtype], 2304};
    typed[1] = {(const void *)kernels->collect[dtype], 1216};
  }
  for (int i = 0; i < TS_WARM_RANGES; ++i) {
    words[2 * i] = (int64_t)(intptr_t)ranges[i].begin;
    words[2 * i + 1] = ranges[i].bytes;
  }
  return TS_OK;
}
