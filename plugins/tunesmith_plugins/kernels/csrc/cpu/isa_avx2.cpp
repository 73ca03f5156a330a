// AVX2 without FMA: the same operations in the same order as the scalar version, several lanes at a time.
// Intrinsics only: an inline function of the standard library compiled here could be the copy that the
// linker keeps for machines without AVX2.
#include <immintrin.h>
#include <math.h>

#include "isa.h"
#include "numeric.h"

namespace {

int row_range(const float *x, int64_t n, float *lowest, float *highest) {
  const __m256i exponent = _mm256_set1_epi32(0x7f800000);
  __m256 low = _mm256_set1_ps(*lowest), high = _mm256_set1_ps(*highest);
  __m256i bad = _mm256_setzero_si256();
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 v = _mm256_loadu_ps(x + i);
    bad = _mm256_or_si256(bad, _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_castps_si256(v), exponent), exponent));
    low = _mm256_min_ps(v, low);
    high = _mm256_max_ps(v, high);
  }
  int finite = _mm256_testz_si256(bad, bad);
  float lows[8], highs[8];
  _mm256_storeu_ps(lows, low);
  _mm256_storeu_ps(highs, high);
  float least = lows[0], most = highs[0];
  for (int lane = 1; lane < 8; ++lane) {
    least = lows[lane] < least ? lows[lane] : least;
    most = highs[lane] > most ? highs[lane] : most;
  }
  for (; i < n; ++i) {
    if ((float_to_bits(x[i]) & 0x7f800000u) == 0x7f800000u) finite = 0;
    if (x[i] < least) least = x[i];
    if (x[i] > most) most = x[i];
  }
  *lowest = least;
  *highest = most;
  return finite;
}

void quantize(const float *x, int64_t n, float inverse, int32_t zero_point, uint8_t *q) {
  const __m256 factor = _mm256_set1_ps(inverse), magic = _mm256_set1_ps(kRoundFloat);
  const __m256i zero = _mm256_set1_epi32(zero_point);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 product = _mm256_mul_ps(_mm256_loadu_ps(x + i), factor);
    const __m256 rounded = _mm256_sub_ps(_mm256_add_ps(product, magic), magic);
    const __m256i v = _mm256_add_epi32(_mm256_cvttps_epi32(rounded), zero);
    // both packs saturate, which is the clamp to [0, 255]
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64((__m128i *)(q + i), _mm_packus_epi16(words, words));
  }
  for (; i < n; ++i) q[i] = ts_quantize_one(x[i], inverse, zero_point);
}

int32_t sum_lanes(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
  return _mm_cvtsi128_si32(s);
}

// u8 and s8 widened to 16 bits, then vpmaddwd: exact, where vpmaddubsw would saturate at 255 * 127 * 2.
void dot_rows(const uint8_t *a, int64_t lda, int m, const int8_t *w, int64_t k, int32_t *out, int n) {
  __m256i sums[kTileRows];
  for (int i = 0; i < kTileRows; ++i) sums[i] = _mm256_setzero_si256();
  const uint8_t *a0 = a, *a1 = a + (m > 1 ? lda : 0), *a2 = a + (m > 2 ? 2 * lda : 0), *a3 = a + (m > 3 ? 3 * lda : 0);
  int64_t t = 0;
  if (m == 1) {
    for (; t + 16 <= k; t += 16) {
      const __m256i v = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w + t)));
      const __m256i u = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(a0 + t)));
      sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(u, v));
    }
  } else {
    for (; t + 16 <= k; t += 16) {
      const __m256i v = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w + t)));
      const __m256i u0 = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(a0 + t)));
      const __m256i u1 = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(a1 + t)));
      const __m256i u2 = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(a2 + t)));
      const __m256i u3 = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(a3 + t)));
      sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(u0, v));
      sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(u1, v));
      sums[2] = _mm256_add_epi32(sums[2], _mm256_madd_epi16(u2, v));
      sums[3] = _mm256_add_epi32(sums[3], _mm256_madd_epi16(u3, v));
    }
  }
  int32_t totals[kTileRows];
  for (int i = 0; i < kTileRows; ++i) totals[i] = sum_lanes(sums[i]);
  for (int i = 0; i < m; ++i) {
    int32_t total = totals[i];
    for (int64_t rest = t; rest < k; ++rest) total += (int32_t)a[i * lda + rest] * (int32_t)w[rest];
    out[i * n] = total;
  }
}

void dots(const uint8_t *a, int64_t lda, int m, const int8_t *w, int64_t ldw, int n, int64_t k, int32_t *out) {
  for (int j = 0; j < n; ++j) dot_rows(a, lda, m, w + j * ldw, k, out + j, n);
}

}  // namespace

extern const TsKernels ts_kernels_avx2 = {"avx2", row_range, quantize, dots};
