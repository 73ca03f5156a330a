// The loops of attention for AVX2, for AVX-512 machines too: what they read comes from beyond the first cache.
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "attention.h"
#include "attention_plain.h"

namespace {

__m256i widened(const int8_t *at) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)at)); }

// The sums of four registers side by side.
__m128i sums_of(const __m256i *v) {
  const __m256i sums = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
  return _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
}

// Of 1 to 4 tokens.
void dots_of(int tokens, const int16_t *q, const int8_t *k, int64_t size, int32_t *dots) {
  __m256i sums[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
  int32_t found[4];
  int64_t d = 0;
  for (; d + 16 <= size; d += 16) {
    const __m256i at = _mm256_loadu_si256((const __m256i *)(q + d));
    for (int i = 0; i < tokens; ++i) sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(widened(k + i * size + d), at));
  }
  _mm_storeu_si128((__m128i *)found, sums_of(sums));
  for (int i = 0; i < tokens; ++i) {
    for (int64_t rest = d; rest < size; ++rest) found[i] += (int32_t)q[rest] * k[i * size + rest];
    dots[i] = found[i];
  }
}

void dots(const int16_t *q, const int8_t *k, int64_t time, int64_t size, int32_t *dots) {
  int64_t t = 0;
  for (; t + 4 <= time; t += 4) dots_of(4, q, k + t * size, size, dots + t);
  for (; t < time; ++t) dots_of(1, q, k + t * size, size, dots + t);
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

__m256 splat(float value) { return _mm256_set1_ps(value); }

float most_of(__m256 v) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

// The nearest integer, ties to even, as ts_round_float has it.
__m256 nearest(__m256 x) { return _mm256_sub_ps(_mm256_add_ps(x, splat(kRoundFloat)), splat(kRoundFloat)); }

// ts_exp_float of numbers that are not above 0 and not NaN.
__m256 exponentials(__m256 x) {
  x = _mm256_max_ps(x, splat(-kExpLimit));
  const __m256 n = nearest(_mm256_mul_ps(x, splat(kLog2EFloat)));
  const __m256 r = _mm256_sub_ps(_mm256_sub_ps(x, _mm256_mul_ps(n, splat(kLn2HighFloat))), _mm256_mul_ps(n, splat(kLn2LowFloat)));
  __m256 p = splat(kExpLeadFloat);
#define TS_STEP(c) p = _mm256_add_ps(_mm256_mul_ps(p, r), splat(c));
  TS_EXP_FLOAT(TS_STEP)
#undef TS_STEP
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvttps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(p, _mm256_castsi256_ps(power));
}

float scores(const int32_t *dots, const float *k_scale, const float *added, float x_scale, float scale, int64_t time, float *scores, bool *known) {
  __m256 most = splat(-HUGE_VALF), strange = _mm256_setzero_ps();
  int64_t t = 0;
  for (; t + 8 <= time; t += 8) {
    const __m256 dot = _mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i *)(dots + t)));
    __m256 score = _mm256_mul_ps(_mm256_mul_ps(dot, _mm256_mul_ps(splat(x_scale), _mm256_loadu_ps(k_scale + t))), splat(scale));
    if (added) score = _mm256_add_ps(score, _mm256_loadu_ps(added + t));
    _mm256_storeu_ps(scores + t, score);
    strange = _mm256_or_ps(strange, _mm256_cmp_ps(score, score, _CMP_UNORD_Q));
    most = _mm256_max_ps(score, most);  // of a NaN and another number the second
  }
  *known &= _mm256_testz_ps(strange, strange) != 0;
  return plain_scores(dots, k_scale, added, x_scale, scale, t, time, scores, most_of(most), known);
}

float weigh(const float *v_scale, float most, int64_t time, float *numbers, double *lanes) {
  __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
  __m256 largest = _mm256_setzero_ps();
  int64_t t = 0;
  for (; t + kAttentionLanes <= time; t += kAttentionLanes) {
    const __m256 score = _mm256_loadu_ps(numbers + t), seen = _mm256_cmp_ps(score, splat(-HUGE_VALF), _CMP_GT_OQ);
    const __m256 e = _mm256_and_ps(exponentials(_mm256_sub_ps(score, splat(most))), seen);
    low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(e)));
    high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(e, 1)));
    const __m256 weight = v_scale ? _mm256_mul_ps(e, _mm256_loadu_ps(v_scale + t)) : e;
    _mm256_storeu_ps(numbers + t, weight);
    largest = _mm256_max_ps(weight, largest);
  }
  _mm256_storeu_pd(lanes, low);
  _mm256_storeu_pd(lanes + 4, high);
  return plain_weigh(v_scale, most, t, time, numbers, lanes, most_of(largest));
}

void round_all(const float *weights, float by, int64_t time, int16_t *rounded) {
  const __m256i lower = _mm256_set1_epi32(0xffff);
  int64_t t = 0;
  for (; t + 16 <= time; t += 16) {
    __m256i halves[2];
    for (int i = 0; i < 2; ++i) {
      const __m256i p = _mm256_cvttps_epi32(nearest(_mm256_mul_ps(_mm256_loadu_ps(weights + t + 8 * i), splat(by))));
      halves[i] = _mm256_and_si256(_mm256_min_epi32(p, _mm256_set1_epi32(32767)), lower);  // their lower 16 bits, as a cast takes them
    }
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(halves[0], halves[1]), 0xd8);
    _mm256_storeu_si256((__m256i *)(rounded + t), packed);
  }
  plain_round(weights, by, t, time, rounded);
}

// Fetches a row of floats into the second cache.
void fetch(const float *row, int64_t size) {
  for (int64_t d = 0; d < size; d += 16) _mm_prefetch((const char *)(row + d), _MM_HINT_T1);
}

// Of 1 to 4 tokens.
template <int Tokens>
void float_dots_of(const float *q, const float *k, int64_t size, float *dots) {
  __m256 low[4], high[4];
  for (int i = 0; i < 4; ++i) low[i] = high[i] = _mm256_setzero_ps();
  int64_t d = 0;
  for (; d + kFloatLanes <= size; d += kFloatLanes) {
    const __m256 first = _mm256_loadu_ps(q + d), second = _mm256_loadu_ps(q + d + 8);
    for (int i = 0; i < Tokens; ++i) {
      low[i] = _mm256_add_ps(low[i], _mm256_mul_ps(first, _mm256_loadu_ps(k + i * size + d)));
      high[i] = _mm256_add_ps(high[i], _mm256_mul_ps(second, _mm256_loadu_ps(k + i * size + d + 8)));
    }
  }
  if (d < size) {
    for (int i = 0; i < Tokens; ++i) {
      float lanes[kFloatLanes];
      _mm256_storeu_ps(lanes, low[i]);
      _mm256_storeu_ps(lanes + 8, high[i]);
      dots[i] = plain_float_dot(q, k + i * size, d, size, lanes);
    }
    return;
  }
  __m256 sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = _mm256_add_ps(low[i], high[i]);
  const __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(sums[0], sums[1]), _mm256_hadd_ps(sums[2], sums[3]));
  float found[4];
  _mm_storeu_ps(found, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
  memcpy(dots, found, Tokens * sizeof(float));
}

void float_dots(const float *q, const float *k, const float *next, int64_t time, int64_t size, float *dots) {
  int64_t t = 0;
  for (; t + 4 <= time; t += 4) {
    if (next) fetch(next + t * size, 4 * size);
    float_dots_of<4>(q, k + t * size, size, dots + t);
  }
  for (; t < time; ++t) {
    if (next) fetch(next + t * size, size);
    float_dots_of<1>(q, k + t * size, size, dots + t);
  }
}

float float_scores(const float *added, float scale, int64_t time, float *scores, bool *known) {
  __m256 most = splat(-HUGE_VALF), strange = _mm256_setzero_ps();
  int64_t t = 0;
  for (; t + 8 <= time; t += 8) {
    __m256 score = _mm256_mul_ps(_mm256_loadu_ps(scores + t), splat(scale));
    if (added) score = _mm256_add_ps(score, _mm256_loadu_ps(added + t));
    _mm256_storeu_ps(scores + t, score);
    strange = _mm256_or_ps(strange, _mm256_cmp_ps(score, score, _CMP_UNORD_Q));
    most = _mm256_max_ps(score, most);  // of a NaN and another number the second
  }
  *known &= _mm256_testz_ps(strange, strange) != 0;
  return plain_float_scores(added, scale, t, time, scores, most_of(most), known);
}

// 8 * Count channels.
template <int Count>
void float_mix_of(const float *p, const float *v, const float *next, int64_t time, int64_t size, double *wide) {
  __m256 sums[Count];
  for (int i = 0; i < Count; ++i) sums[i] = _mm256_setzero_ps();
  for (int64_t t = 0; t < time; ++t) {
    if (next) fetch(next + t * size, 8 * Count);
    const __m256 weight = splat(p[t]);
    for (int i = 0; i < Count; ++i) sums[i] = _mm256_add_ps(sums[i], _mm256_mul_ps(weight, _mm256_loadu_ps(v + t * size + 8 * i)));
  }
  for (int i = 0; i < Count; ++i) {
    double *at = wide + 8 * i;
    _mm256_storeu_pd(at, _mm256_add_pd(_mm256_loadu_pd(at), _mm256_cvtps_pd(_mm256_castps256_ps128(sums[i]))));
    _mm256_storeu_pd(at + 4, _mm256_add_pd(_mm256_loadu_pd(at + 4), _mm256_cvtps_pd(_mm256_extractf128_ps(sums[i], 1))));
  }
}

void float_mix(const float *p, const float *v, const float *next, int64_t time, int64_t size, double *wide) {
  int64_t d = 0;
  for (; d + 64 <= size; d += 64) float_mix_of<8>(p, v + d, next ? next + d : nullptr, time, size, wide + d);
  for (; d + 8 <= size; d += 8) float_mix_of<1>(p, v + d, next ? next + d : nullptr, time, size, wide + d);
  plain_float_mix(p, v, time, size, d, wide);
}

}  // namespace

extern const TsAttentionLoops ts_attention_avx2 = {dots, scores, weigh, round_all, mix, float_dots, float_scores, float_mix};
