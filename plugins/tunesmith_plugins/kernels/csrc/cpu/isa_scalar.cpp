// The plain version: what the others must equal.
#include <math.h>

#include "isa.h"
#include "numeric.h"

namespace {

float row_max(const float *x, int64_t n, uint8_t *has_nan) {
  float best = -HUGE_VALF;
  for (int64_t i = 0; i < n; ++i) {
    if (x[i] != x[i]) *has_nan = 1;
    if (x[i] > best) best = x[i];
  }
  return best;
}

uint64_t exp_row(const float *z, int64_t n, float max, double scale, double *e) {
  uint64_t total = 0;
  for (int64_t i = 0; i < n; ++i) {
    e[i] = ts_exp((double)z[i] - (double)max);
    total += ts_weight(e[i], scale);
  }
  return total;
}

void divide(float *z, int64_t n, float divisor) {
  for (int64_t i = 0; i < n; ++i) z[i] = z[i] / divisor;
}

}  // namespace

extern const TsKernels ts_kernels_scalar = {"scalar", row_max, exp_row, divide};
