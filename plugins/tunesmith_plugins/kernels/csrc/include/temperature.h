// The divisor of a dynamic temperature, which looks at the entropy. Shared by the CPU and the CUDA library;
// reference_entropy.py says the same in torch.
#pragma once

#include "powers.h"
#include "truncations.h"

namespace {

// Between low and second[0] by the share of the largest possible entropy of so many tokens, to the power of second[1];
// sums are in units of scale.
TS_HD float ts_dynamic_divisor(uint64_t total, uint64_t depths, int64_t finite, double scale, double low, const double *second) {
  const double entropy = ts_log(ts_mass(total, scale)) + ts_mean_depth(depths, total);
  const double share = entropy / ts_log((double)(finite < 2 ? 2 : finite));
  return (float)(low + (second[0] - low) * ts_power(share < 0 ? 0 : share > 1 ? 1 : share, second[1]));
}

}  // namespace
