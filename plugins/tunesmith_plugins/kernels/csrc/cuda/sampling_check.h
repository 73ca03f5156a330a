// Whether a row's parameters are in range: they lie on the device, so it is for the device to look.
#pragma once

#include "block.h"
#include "ranges.h"
#include "steps.h"

namespace {

constexpr uint8_t kRefused = 255;  // a status beside those of ts_row_status, of a call that fails

__device__ TS_NOINLINE inline bool refused(const ts_sample_args &a, const ts_step *steps, int64_t index) {
  uint64_t faults = 0;
  bool reads_history = false;
  for (int64_t s = threadIdx.x; s < a.step_count; s += kThreads) {
    const ts_step &step = steps[s];
    faults += !ts_in_range(step.op, ts_step_value(step, index));
    for (int32_t column = 0; column < ts_seconds(step.op); ++column)
      faults += !ts_second_in_range(step.op, column, step.second[index * step.second_stride + column]);
    if (step.op == TS_WATERMARK) faults += ((const int64_t *)step.ids)[index * step.ids_stride + 1] < 1;
  }
  for (int64_t s = 0; s < a.step_count; ++s) {
    const ts_step &step = steps[s];
    reads_history |= ts_needs_history(step) || step.op == TS_WATERMARK;
    if (!step.amounts) continue;
    for (int64_t i = threadIdx.x; i < step.width; i += kThreads)
      faults += !(fabsf(step.amounts[index * step.amounts_stride + i]) <= FLT_MAX);
  }
  if (threadIdx.x == 0) {
    if (reads_history && a.history_lengths) faults += a.history_lengths[index] < 0 || a.history_lengths[index] > a.history_width;
    if (a.token && !a.greedy) faults += a.position[index] < 0 || a.position[index] > UINT32_MAX;
  }
  return block_sum(faults) != 0;
}

}  // namespace
