// The sampling chain: checks the arguments and shares out the rows; chain_row.cpp does the work of one.
#include <math.h>

#include "chain_row.h"
#include "error.h"
#include "isa.h"
#include "numeric.h"
#include "tunesmith.h"

namespace {

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
      const double v = ts_step_value(step, row);
      const bool fits = step.op == TS_TOP_K ? v == floor(v) && fabs(v) < 0x1p53
                        : ts_is_edit(step.op)  ? (float)v > 0 && (float)v < HUGE_VALF
                                            : v >= 0 && v <= 1;
      if (!fits)
        return ts_fail(TS_INVALID, "step %lld (%s), row %lld: %g is outside the allowed range, %s", (long long)s,
                       op_name(step.op), (long long)row, v,
                       step.op == TS_TOP_K ? "an integer" : ts_is_edit(step.op) ? "above 0 and finite in float32" : "0 to 1");
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

}  // namespace

extern "C" int32_t ts_sample(const ts_sample_args *args) {
  return ts_guard([args]() -> int32_t {
    if (!args) return ts_fail(TS_INVALID, "no arguments");
    const int32_t code = check(*args);
    if (code != TS_OK) return code;
    const TsKernels *kernels = ts_kernels();
    if (!kernels) return TS_UNSUPPORTED;
    if (args->batch == 0) return TS_OK;
    const ChainPlan plan(*args);
    static thread_local ChainRow worker;
    for (int64_t row = 0; row < args->batch; ++row) worker.run(*args, plan, ts_sampling(*kernels), row);
    return TS_OK;
  });
}

extern "C" int32_t ts_exp_row(const float *z, int64_t n, float max, int64_t vocab, float *e, uint64_t *total) {
  return ts_guard([=]() -> int32_t {
    const TsKernels *kernels = ts_kernels();
    if (!kernels) return TS_UNSUPPORTED;
    if (n < 0 || vocab < 1 || !total || (n && (!z || !e))) return ts_fail(TS_INVALID, "nothing to compute or to write to");
    const TsSampling &sampling = ts_sampling(*kernels);
    const TsRow row = {z, n, nullptr, nullptr, nullptr, 0, TS_F32};
    sampling.exps(z, n, max, e);
    *total = sampling.mass(&row, max, ts_weight_bits(vocab), -HUGE_VALF, nullptr);
    return TS_OK;
  });
}
