// The inner loops that have one version per instruction set. Every version gives the same bits.
#pragma once

#include <stdint.h>

struct TsKernels {
  const char *name;
  // The largest value of x[0..n) (-inf for n = 0); *has_nan is set to 1 if there is a NaN, else left alone.
  float (*row_max)(const float *x, int64_t n, uint8_t *has_nan);
  // e[i] = exp(z[i] - max); returns the sum of the integer weights at that scale.
  uint64_t (*exp_row)(const float *z, int64_t n, float max, double scale, double *e);
  // z[i] /= divisor
  void (*divide)(float *z, int64_t n, float divisor);
};

extern const TsKernels ts_kernels_scalar;
#if defined(TS_HAVE_AVX2)
extern const TsKernels ts_kernels_avx2;
#endif
#if defined(TS_HAVE_AVX512)
extern const TsKernels ts_kernels_avx512;
#endif

// The chosen table, or null with a message set when TUNESMITH_ISA cannot be honoured.
const TsKernels *ts_kernels();
