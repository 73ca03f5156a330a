// Which numbers a step may have. Shared by the CPU and the CUDA library.
#pragma once

#include <float.h>
#include <math.h>

#include "numeric.h"
#include "tunesmith.h"

namespace {

TS_HD bool ts_in_range(int32_t op, double v) {
  switch (op) {
    case TS_REPETITION_PENALTY:
    case TS_TEMPERATURE:
    case TS_DYNAMIC_TEMPERATURE:
      return (float)v > 0 && (float)v <= FLT_MAX;
    case TS_TOP_K:
    case TS_TOP_K_LOW:
      return v == floor(v) && fabs(v) < 0x1p53;
    case TS_PRESENCE_PENALTY:
    case TS_FREQUENCY_PENALTY:
    case TS_BIAS:
    case TS_WATERMARK:
      return fabsf((float)v) <= FLT_MAX;
    case TS_MIROSTAT:
      return fabs(v) <= DBL_MAX;
    case TS_LENGTH_DECAY:
      return v >= -1 && v <= DBL_MAX;
    case TS_TOP_N_SIGMA:
      return v >= 0 && v <= DBL_MAX;
    case TS_BAN:
    case TS_ALLOW:
    case TS_MASK:
      return v == 0 || v == 1;
    default:
      return v >= 0 && v <= 1;
  }
}

TS_HD bool ts_second_in_range(int32_t op, int32_t column, double v) {
  switch (op) {
    case TS_XTC:
      return v == 0 || v == 1;
    case TS_WATERMARK:
      return v >= 0 && v <= 1;
    case TS_DYNAMIC_TEMPERATURE:
      return column == 0 ? (float)v > 0 && (float)v <= FLT_MAX : v > 0 && v <= DBL_MAX;
    default:
      if (op == TS_TOP_P_TIES && column == 1) return v == TS_TIES_HIGH || v == TS_TIES_LOW || v == TS_TIES_ALL;
      return v == floor(v) && v >= 1 && v < 0x1p53;
  }
}

}  // namespace
