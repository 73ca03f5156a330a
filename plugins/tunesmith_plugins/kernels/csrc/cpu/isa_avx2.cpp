// AVX2 without FMA: the same operations in the same order as the scalar version, several lanes at a time.
// Intrinsics only: an inline function of the standard library compiled here could be the copy that the
// linker keeps for machines without AVX2.
#include <immintrin.h>
#include <math.h>

#include "isa.h"
#include "numeric.h"

namespace {

float row_max(const float *x, int64_t n, uint8_t *has_nan) {
  __m256 best = _mm256_set1_ps(-HUGE_VALF), unordered = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 v = _mm256_loadu_ps(x + i);
    unordered = _mm256_or_ps(unordered, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    best = _mm256_max_ps(v, best);  // of a NaN and best it returns best
  }
  if (_mm256_movemask_ps(unordered)) *has_nan = 1;
  float lanes[8];
  _mm256_storeu_ps(lanes, best);
  float result = lanes[0];
  for (int lane = 1; lane < 8; ++lane) result = lanes[lane] > result ? lanes[lane] : result;
  for (; i < n; ++i) {
    if (x[i] != x[i]) *has_nan = 1;
    if (x[i] > result) result = x[i];
  }
  return result;
}

uint64_t exp_row(const float *z, int64_t n, float max, double scale, double *e) {
  const __m256d top = _mm256_set1_pd((double)max), floor = _mm256_set1_pd(kExpFloor);
  const __m256d log2e = _mm256_set1_pd(kLog2E), magic = _mm256_set1_pd(kRound);
  const __m256d ln2_hi = _mm256_set1_pd(kLn2Hi), ln2_lo = _mm256_set1_pd(kLn2Lo);
  const __m256d scales = _mm256_set1_pd(scale), integral = _mm256_set1_pd(kIntegral);
  const __m256i mantissa = _mm256_set1_epi64x((long long)kMantissa), bias = _mm256_set1_epi64x(1023);
  __m256i total = _mm256_setzero_si256();
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    __m256d d = _mm256_sub_pd(_mm256_cvtps_pd(_mm_loadu_ps(z + i)), top);
    const __m256d gone = _mm256_cmp_pd(d, floor, _CMP_LT_OQ);
    d = _mm256_blendv_pd(d, floor, gone);
    const __m256d shifted = _mm256_add_pd(_mm256_mul_pd(d, log2e), magic);
    const __m256d whole = _mm256_sub_pd(shifted, magic);
    const __m256d r = _mm256_sub_pd(_mm256_sub_pd(d, _mm256_mul_pd(whole, ln2_hi)), _mm256_mul_pd(whole, ln2_lo));
    __m256d p = _mm256_set1_pd(kExpLead);
#define TS_STEP(c) p = _mm256_add_pd(_mm256_mul_pd(p, r), _mm256_set1_pd(c));
    TS_EXP_COEFFICIENTS(TS_STEP)
#undef TS_STEP
    const __m256i power = _mm256_slli_epi64(_mm256_add_epi64(_mm256_castpd_si256(shifted), bias), 52);
    const __m256d value = _mm256_andnot_pd(gone, _mm256_mul_pd(p, _mm256_castsi256_pd(power)));
    _mm256_storeu_pd(e + i, value);
    const __m256d weight = _mm256_add_pd(_mm256_mul_pd(value, scales), integral);
    total = _mm256_add_epi64(total, _mm256_and_si256(_mm256_castpd_si256(weight), mantissa));
  }
  uint64_t lanes[4];
  _mm256_storeu_si256((__m256i *)lanes, total);
  uint64_t sum = lanes[0] + lanes[1] + lanes[2] + lanes[3];
  for (; i < n; ++i) {
    e[i] = ts_exp((double)z[i] - (double)max);
    sum += ts_weight(e[i], scale);
  }
  return sum;
}

void divide(float *z, int64_t n, float divisor) {
  const __m256 d = _mm256_set1_ps(divisor);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(z + i, _mm256_div_ps(_mm256_loadu_ps(z + i), d));
  for (; i < n; ++i) z[i] = z[i] / divisor;
}

}  // namespace

extern const TsKernels ts_kernels_avx2 = {"avx2", row_max, exp_row, divide};
