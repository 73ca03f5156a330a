// The temperature that looks at the entropy.
#pragma once

#include "sampling_edits.h"
#include "temperature.h"

namespace {

__device__ inline float dynamic_divisor(const Row &row, double low, const double *second) {
  uint64_t total = 0, depths = 0, finite = 0;
  const Scale scale = row.weigh();
  row.each([&](int, float value) {
    total += scale.weight(value);
    depths += scale.depth(value);
    finite += value > -infinity();
  });
  total = block_sum(total);
  depths = block_sum(depths);
  return ts_dynamic_divisor(total, depths, (int64_t)block_sum(finite), row.scale, low, second);
}

// apart: whether the processed row is asked for and may have other tokens than the row, and so an entropy of its own.
// Without a finite maximum it has none.
__device__ TS_NOINLINE inline void dynamic_temperature(Row &row, Row &processed, bool apart, double low, const double *second) {
  const float divisor = dynamic_divisor(row, low, second);
  float other = divisor;
  if (apart) {
    processed.look();
    if (processed.max < infinity() && processed.max > -infinity()) other = dynamic_divisor(processed, low, second);
  }
  divide(row, divisor);
  if (processed.z) divide(processed, other);
}

}  // namespace
