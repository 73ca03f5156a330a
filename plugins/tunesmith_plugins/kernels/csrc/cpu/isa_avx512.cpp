// AVX-512 with VNNI: the same operations in the same order, tails by masks. Intrinsics only, as in isa_avx2.cpp.
#include <immintrin.h>
#include <math.h>

#include "isa.h"
#include "numeric.h"

namespace {

__mmask16 tail16(int64_t left) { return left >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << left) - 1); }

float row_max(const float *x, int64_t n, uint8_t *has_nan) {
  const __m512 nothing = _mm512_set1_ps(-HUGE_VALF);
  __m512 best = nothing;
  __mmask16 unordered = 0;
  for (int64_t i = 0; i < n; i += 16) {
    const __m512 v = _mm512_mask_loadu_ps(nothing, tail16(n - i), x + i);
    unordered = (__mmask16)(unordered | _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q));
    best = _mm512_max_ps(v, best);  // of a NaN and best it returns best
  }
  if (unordered) *has_nan = 1;
  return _mm512_reduce_max_ps(best);
}

uint64_t exp_row(const float *z, int64_t n, float max, double scale, double *e) {
  const __m512d top = _mm512_set1_pd((double)max), floor = _mm512_set1_pd(kExpFloor);
  const __m512d log2e = _mm512_set1_pd(kLog2E), magic = _mm512_set1_pd(kRound);
  const __m512d ln2_hi = _mm512_set1_pd(kLn2Hi), ln2_lo = _mm512_set1_pd(kLn2Lo);
  const __m512d scales = _mm512_set1_pd(scale), integral = _mm512_set1_pd(kIntegral);
  const __m512i mantissa = _mm512_set1_epi64((long long)kMantissa), bias = _mm512_set1_epi64(1023);
  __m512i total = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; i += 8) {
    const __mmask8 here = n - i >= 8 ? (__mmask8)0xff : (__mmask8)((1u << (n - i)) - 1);
    __m512d d = _mm512_sub_pd(_mm512_cvtps_pd(_mm256_maskz_loadu_ps(here, z + i)), top);
    const __mmask8 stays = (__mmask8)(here & _mm512_cmp_pd_mask(d, floor, _CMP_NLT_UQ));
    d = _mm512_mask_blend_pd(stays, floor, d);
    const __m512d shifted = _mm512_add_pd(_mm512_mul_pd(d, log2e), magic);
    const __m512d whole = _mm512_sub_pd(shifted, magic);
    const __m512d r = _mm512_sub_pd(_mm512_sub_pd(d, _mm512_mul_pd(whole, ln2_hi)), _mm512_mul_pd(whole, ln2_lo));
    __m512d p = _mm512_set1_pd(kExpLead);
#define TS_STEP(c) p = _mm512_add_pd(_mm512_mul_pd(p, r), _mm512_set1_pd(c));
    TS_EXP_COEFFICIENTS(TS_STEP)
#undef TS_STEP
    const __m512i power = _mm512_slli_epi64(_mm512_add_epi64(_mm512_castpd_si512(shifted), bias), 52);
    const __m512d value = _mm512_maskz_mul_pd(stays, p, _mm512_castsi512_pd(power));
    _mm512_mask_storeu_pd(e + i, here, value);
    const __m512d weight = _mm512_add_pd(_mm512_mul_pd(value, scales), integral);
    total = _mm512_add_epi64(total, _mm512_and_si512(_mm512_castpd_si512(weight), mantissa));
  }
  return (uint64_t)_mm512_reduce_add_epi64(total);
}

void divide(float *z, int64_t n, float divisor) {
  const __m512 d = _mm512_set1_ps(divisor);
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 here = tail16(n - i);
    _mm512_mask_storeu_ps(z + i, here, _mm512_div_ps(_mm512_maskz_loadu_ps(here, z + i), d));
  }
}

}  // namespace

extern const TsKernels ts_kernels_avx512 = {"avx512", row_max, exp_row, divide};
