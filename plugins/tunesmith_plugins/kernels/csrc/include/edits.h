// What a step does to the value of one token that it names. Shared by the CPU and the CUDA library.
#pragma once

#include "numeric.h"
#include "tunesmith.h"

namespace {

constexpr float kLargestFloat = 0x1.fffffep127f;

TS_HD float ts_bounded(float v) { return v > kLargestFloat ? kLargestFloat : v < -kLargestFloat ? -kLargestFloat : v; }

// sum is that of the token's amounts, in the order in which they are listed; a removed token, at -inf, stays there.
TS_HD float ts_edited(int32_t op, float z, double value, float sum) {
  switch (op) {
    case TS_REPETITION_PENALTY:
      return z < 0 ? z * (float)value : z / (float)value;
    case TS_PRESENCE_PENALTY:
      return z - (float)value;
    case TS_FREQUENCY_PENALTY:
      return z - ts_bounded((float)value * sum);
    case TS_BIAS:
      return z + ts_bounded((float)value * ts_bounded(sum));
    default:  // TS_LENGTH_DECAY
      return z - z == 0 ? (float)((double)z + (double)(z < 0 ? -z : z) * value) : z;
  }
}

TS_HD bool ts_allowed(const int32_t *words, int64_t count, int64_t id) {
  return id / 32 < count && ((uint32_t)words[id / 32] >> (id % 32) & 1);
}

}  // namespace
