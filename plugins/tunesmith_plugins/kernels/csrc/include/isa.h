// The inner loops of int8 that have one version per instruction set (those of sampling: sampling.h), and the choice
// among the sets. Every version gives the same bits.
#pragma once

#include <stdint.h>

struct TsKernels {
  const char *name;
  // Widens [*lowest, *highest] to hold x; returns 0 if a value is not finite.
  int (*row_range)(const float *x, int64_t n, float *lowest, float *highest);
  void (*quantize)(const float *x, int64_t n, float inverse, int32_t zero_point, uint8_t *q);
  // out[i * n + j] = sum over k of a[i * lda + k] * w[j * ldw + k], for m in 1..kTileRows.
  void (*dots)(const uint8_t *a, int64_t lda, int m, const int8_t *w, int64_t ldw, int n, int64_t k, int32_t *out);
};

constexpr int kTileRows = 4;
constexpr int kTileColumns = 64;

extern const TsKernels ts_kernels_scalar;
#if defined(TS_HAVE_AVX2)
extern const TsKernels ts_kernels_avx2;
#endif
#if defined(TS_HAVE_AVX512)
extern const TsKernels ts_kernels_avx512;
#endif

// The chosen table, or null with a message set when TUNESMITH_ISA cannot be honoured.
const TsKernels *ts_kernels();
