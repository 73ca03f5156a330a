// The loops of attention for AVX2, for AVX-512 machines too: what they read comes from beyond the first cache.
#include <immintrin.h>
#include <string.h>

#include "attention.h"

namespace {

__m256i widened(const int8_t *at) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)at)); }

int32_t sum_of(__m256i v) {
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

void dots(const int16_t *q, const int8_t *k, int64_t time, int64_t size, int32_t *dots) {
  for (int64_t t = 0; t < time; ++t, k += size) {
    __m256i sums = _mm256_setzero_si256();
    int64_t d = 0;
    for (; d + 16 <= size; d += 16)
      sums = _mm256_add_epi32(sums, _mm256_madd_epi16(widened(k + d), _mm256_loadu_si256((const __m256i *)(q + d))));
    int32_t sum = sum_of(sums);
    for (; d < size; ++d) sum += (int32_t)q[d] * k[d];
    dots[t] = sum;
  }
}

// 16 channels of two tokens at a time, the tokens' weights side by side.
struct Mixed {
  __m256i first, second;  // channels 0-3 and 8-11; 4-7 and 12-15

  void add(__m256i one, __m256i other, __m256i weights) {
    first = _mm256_add_epi32(first, _mm256_madd_epi16(_mm256_unpacklo_epi16(one, other), weights));
    second = _mm256_add_epi32(second, _mm256_madd_epi16(_mm256_unpackhi_epi16(one, other), weights));
  }
  void store(int32_t *at) const {
    _mm256_storeu_si256((__m256i *)at, _mm256_permute2x128_si256(first, second, 0x20));
    _mm256_storeu_si256((__m256i *)(at + 8), _mm256_permute2x128_si256(first, second, 0x31));
  }
};

template <int Count>
void mix_channels(const int16_t *p, const int8_t *v, int64_t time, int64_t size, int32_t *sums) {
  Mixed mixed[Count];
  for (int i = 0; i < Count; ++i) mixed[i] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  int64_t t = 0;
  for (; t + 2 <= time; t += 2, v += 2 * size) {
    int32_t pair;
    memcpy(&pair, p + t, 4);
    for (int i = 0; i < Count; ++i) mixed[i].add(widened(v + 16 * i), widened(v + size + 16 * i), _mm256_set1_epi32(pair));
  }
  if (t < time)
    for (int i = 0; i < Count; ++i) mixed[i].add(widened(v + 16 * i), _mm256_setzero_si256(), _mm256_set1_epi32(p[t]));
  for (int i = 0; i < Count; ++i) mixed[i].store(sums + 16 * i);
}

void mix(const int16_t *p, const int8_t *v, int64_t time, int64_t size, int32_t *sums) {
  int64_t d = 0;
  for (; d + 64 <= size; d += 64) mix_channels<4>(p, v + d, time, size, sums + d);
  for (; d + 16 <= size; d += 16) mix_channels<1>(p, v + d, time, size, sums + d);
  for (; d < size; ++d) {
    int32_t sum = 0;
    for (int64_t t = 0; t < time; ++t) sum += (int32_t)p[t] * v[t * size + d];
    sums[d] = sum;
  }
}

}  // namespace

extern const TsAttentionLoops ts_attention_avx2 = {dots, mix};
