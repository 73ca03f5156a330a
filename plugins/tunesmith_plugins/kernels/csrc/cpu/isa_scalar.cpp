// The plain version: what the others must equal.
#include <math.h>

#include "isa.h"
#include "numeric.h"

namespace {

int row_range(const float *x, int64_t n, float *lowest, float *highest) {
  int finite = 1;
  float low = *lowest, high = *highest;
  for (int64_t i = 0; i < n; ++i) {
    if ((float_to_bits(x[i]) & 0x7f800000u) == 0x7f800000u) finite = 0;
    if (x[i] < low) low = x[i];
    if (x[i] > high) high = x[i];
  }
  *lowest = low;
  *highest = high;
  return finite;
}

void quantize(const float *x, int64_t n, float inverse, int32_t zero_point, uint8_t *q) {
  for (int64_t i = 0; i < n; ++i) q[i] = ts_quantize_one(x[i], inverse, zero_point);
}

void dots(const uint8_t *a, int64_t lda, int m, const int8_t *w, int64_t ldw, int n, int64_t k, int32_t *out) {
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < n; ++j) {
      int32_t sum = 0;
      for (int64_t t = 0; t < k; ++t) sum += (int32_t)a[i * lda + t] * (int32_t)w[j * ldw + t];
      out[i * n + j] = sum;
    }
  }
}

}  // namespace

extern const TsKernels ts_kernels_scalar = {"scalar", row_range, quantize, dots};
