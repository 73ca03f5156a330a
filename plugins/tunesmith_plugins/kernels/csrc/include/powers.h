// Powers in float64 with the same bits everywhere, reference_powers.py included.
#pragma once

#include "numeric.h"

namespace {

constexpr double kRoundDouble = 0x1.8p52;  // adding and subtracting it rounds to an integer, ties to even
constexpr double kSmallestDouble = 0x1p-1022;

// exp(v) for v in [-700, 700], what is beyond as these: v = n ln(2) + r, and the power series of exp(r) up to r^13.
TS_HD double ts_exp_double(double v) {
  v = v < -700.0 ? -700.0 : v > 700.0 ? 700.0 : v;
  const double n = (v * 0x1.71547652b82fep+0 + kRoundDouble) - kRoundDouble;
  const double r = (v - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33;
  double p = 1.0 / 6227020800.0;
#define TS_STEP(k) p = p * r + 1.0 / (k);
  TS_STEP(479001600.0) TS_STEP(39916800.0) TS_STEP(3628800.0) TS_STEP(362880.0) TS_STEP(40320.0) TS_STEP(5040.0)
  TS_STEP(720.0) TS_STEP(120.0) TS_STEP(24.0) TS_STEP(6.0) TS_STEP(2.0) TS_STEP(1.0) TS_STEP(1.0)
#undef TS_STEP
  return p * bits_to_double((uint64_t)((int64_t)n + 1023) << 52);
}

// share^exponent of a share in [0, 1].
TS_HD double ts_power(double share, double exponent) {
  return share < kSmallestDouble ? 0.0 : ts_exp_double(exponent * ts_log(share));
}

}  // namespace
