// What is to be known of the kinds of steps. Shared by the CPU and the CUDA library.
#pragma once

#include "numeric.h"
#include "tunesmith.h"

namespace {

// Steps that change values, a bit each; the others drop tokens.
constexpr uint32_t kEdits = 1u << TS_REPETITION_PENALTY | 1u << TS_TEMPERATURE | 1u << TS_PRESENCE_PENALTY |
                            1u << TS_FREQUENCY_PENALTY | 1u << TS_BIAS | 1u << TS_LENGTH_DECAY |
                            1u << TS_DYNAMIC_TEMPERATURE | 1u << TS_WATERMARK;
constexpr uint32_t kOneSecond = 1u << TS_TYPICAL | 1u << TS_TOP_H | 1u << TS_XTC | 1u << TS_WATERMARK | 1u << TS_MIROSTAT;
constexpr uint32_t kTwoSeconds = 1u << TS_DYNAMIC_TEMPERATURE | 1u << TS_TOP_P_TIES;
constexpr uint32_t kPenalties = 1u << TS_REPETITION_PENALTY | 1u << TS_PRESENCE_PENALTY | 1u << TS_FREQUENCY_PENALTY;
static_assert(TS_OP_COUNT <= 32, "a bit for every kind of step");

TS_HD bool ts_is_edit(int32_t op) { return kEdits >> op & 1; }

// How many numbers a row has in second.
TS_HD int32_t ts_seconds(int32_t op) { return (int32_t)((kOneSecond >> op & 1) + 2 * (kTwoSeconds >> op & 1)); }

// Penalties without a list of their own take the history.
TS_HD bool ts_needs_history(const ts_step &step) { return !step.ids && (kPenalties >> step.op & 1); }

TS_HD double ts_step_value(const ts_step &step, int64_t row) {
  const int64_t at = row * step.stride;
  return step.dtype == TS_I64 ? (double)((const int64_t *)step.values)[at] : ((const double *)step.values)[at];
}

}  // namespace
