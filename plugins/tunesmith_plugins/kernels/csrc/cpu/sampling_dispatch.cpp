// The loops of sampling that belong to the chosen instruction set.
#include <string.h>

#include "sampling.h"

const TsSampling &ts_sampling(const TsKernels &kernels) {
#if defined(TS_HAVE_AVX512)
  if (strcmp(kernels.name, "avx512") == 0) return ts_sampling_avx512;
#endif
#if defined(TS_HAVE_AVX2)
  if (strcmp(kernels.name, "avx2") == 0) return ts_sampling_avx2;
#endif
  return ts_sampling_scalar;
}
