// AVX-512 with VNNI: the same operations in the same order, tails by masks. Intrinsics only, as in isa_avx2.cpp.
#include <immintrin.h>
#include <math.h>

#include "isa.h"
#include "numeric.h"

namespace {

__mmask16 tail16(int64_t left) { return left >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << left) - 1); }

int row_range(const float *x, int64_t n, float *lowest, float *highest) {
  const __m512i exponent = _mm512_set1_epi32(0x7f800000);
  __m512 low = _mm512_set1_ps(*lowest), high = _mm512_set1_ps(*highest);
  __mmask16 bad = 0;
  for (int64_t i = 0; i < n; i += 16) {
    const __m512 v = _mm512_maskz_loadu_ps(tail16(n - i), x + i);  // the range holds 0 anyway
    bad = (__mmask16)(bad | _mm512_cmpeq_epi32_mask(_mm512_and_si512(_mm512_castps_si512(v), exponent), exponent));
    low = _mm512_min_ps(v, low);
    high = _mm512_max_ps(v, high);
  }
  *lowest = _mm512_reduce_min_ps(low);
  *highest = _mm512_reduce_max_ps(high);
  return bad == 0;
}

void quantize(const float *x, int64_t n, float inverse, int32_t zero_point, uint8_t *q) {
  const __m512 factor = _mm512_set1_ps(inverse), magic = _mm512_set1_ps(kRoundFloat);
  const __m512i zero = _mm512_set1_epi32(zero_point);
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 here = tail16(n - i);
    const __m512 product = _mm512_mul_ps(_mm512_maskz_loadu_ps(here, x + i), factor);
    const __m512 rounded = _mm512_sub_ps(_mm512_add_ps(product, magic), magic);
    const __m512i v = _mm512_max_epi32(_mm512_add_epi32(_mm512_cvttps_epi32(rounded), zero), _mm512_setzero_si512());
    _mm512_mask_cvtusepi32_storeu_epi8(q + i, here, v);  // saturates at 255
  }
}

// Two weight rows against up to four rows of a; vpdpbusd (not vpdpbusds) adds four products exactly.
void dots(const uint8_t *a, int64_t lda, int m, const int8_t *w, int64_t ldw, int n, int64_t k, int32_t *out) {
  // Rows that are not there repeat the first one and are not written.
  const uint8_t *a1 = a + (m > 1 ? lda : 0), *a2 = a + (m > 2 ? 2 * lda : 0), *a3 = a + (m > 3 ? 3 * lda : 0);
  for (int j = 0; j < n; j += 2) {
    const int8_t *w0 = w + j * ldw, *w1 = j + 1 < n ? w0 + ldw : w0;
    __m512i s00 = _mm512_setzero_si512(), s01 = s00, s10 = s00, s11 = s00, s20 = s00, s21 = s00, s30 = s00, s31 = s00;
    for (int64_t t = 0; t < k; t += 64) {
      const __mmask64 here = k - t >= 64 ? ~(__mmask64)0 : (((__mmask64)1 << (k - t)) - 1);
      const __m512i v0 = _mm512_maskz_loadu_epi8(here, w0 + t), v1 = _mm512_maskz_loadu_epi8(here, w1 + t);
      const __m512i u0 = _mm512_maskz_loadu_epi8(here, a + t);
      s00 = _mm512_dpbusd_epi32(s00, u0, v0);
      s01 = _mm512_dpbusd_epi32(s01, u0, v1);
      if (m == 1) continue;
      const __m512i u1 = _mm512_maskz_loadu_epi8(here, a1 + t), u2 = _mm512_maskz_loadu_epi8(here, a2 + t);
      const __m512i u3 = _mm512_maskz_loadu_epi8(here, a3 + t);
      s10 = _mm512_dpbusd_epi32(s10, u1, v0);
      s11 = _mm512_dpbusd_epi32(s11, u1, v1);
      s20 = _mm512_dpbusd_epi32(s20, u2, v0);
      s21 = _mm512_dpbusd_epi32(s21, u2, v1);
      s30 = _mm512_dpbusd_epi32(s30, u3, v0);
      s31 = _mm512_dpbusd_epi32(s31, u3, v1);
    }
    const __m512i sums[kTileRows][2] = {{s00, s01}, {s10, s11}, {s20, s21}, {s30, s31}};
    for (int i = 0; i < m; ++i) {
      out[i * n + j] = _mm512_reduce_add_epi32(sums[i][0]);
      if (j + 1 < n) out[i * n + j + 1] = _mm512_reduce_add_epi32(sums[i][1]);
    }
  }
}

}  // namespace

extern const TsKernels ts_kernels_avx512 = {"avx512", row_range, quantize, dots};
