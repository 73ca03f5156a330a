// The loops over tokens of attention in plain C++: what the vector versions must equal, and what they do with the last few tokens.
#pragma once

#include "float_attention.h"
#include "int8_attention.h"

namespace {

inline float plain_scores(const int32_t *dots, const float *k_scale, const float *added, float x_scale, float scale, int64_t from, int64_t time, float *scores,
                          float most, bool *known) {
  for (int64_t t = from; t < time; ++t) {
    const float score = ts_score(dots[t], x_scale, k_scale[t], scale, added, t);
    scores[t] = score;
    *known &= score == score;
    most = score > most ? score : most;
  }
  return most;
}

inline float plain_weigh(const float *v_scale, float most, int64_t from, int64_t time, float *numbers, double *lanes, float largest) {
  for (int64_t t = from; t < time; ++t) {
    const float e = ts_attention_exp(numbers[t], most);
    lanes[t % kAttentionLanes] += (double)e;
    numbers[t] = v_scale ? e * v_scale[t] : e;
    largest = numbers[t] > largest ? numbers[t] : largest;
  }
  return largest;
}

inline void plain_round(const float *weights, float by, int64_t from, int64_t time, int16_t *rounded) {
  for (int64_t t = from; t < time; ++t) rounded[t] = ts_weight_15(weights[t], by);
}

inline float plain_float_scores(const float *added, float scale, int64_t from, int64_t time, float *scores, float most, bool *known) {
  for (int64_t t = from; t < time; ++t) {
    const float score = added ? scores[t] * scale + added[t] : scores[t] * scale;
    scores[t] = score;
    *known &= score == score;
    most = score > most ? score : most;
  }
  return most;
}

// The sum of a product's lanes: those 8 apart, then neighbours.
inline float plain_lanes(const float *lanes) {
  float eight[8];
  for (int i = 0; i < 8; ++i) eight[i] = lanes[i] + lanes[i + 8];
  return ((eight[0] + eight[1]) + (eight[2] + eight[3])) + ((eight[4] + eight[5]) + (eight[6] + eight[7]));
}

// Of one token; lanes hold the sums before number `from`, a multiple of kFloatLanes.
inline float plain_float_dot(const float *q, const float *k, int64_t from, int64_t size, float *lanes) {
  for (; from + kFloatLanes <= size; from += kFloatLanes)
    for (int64_t lane = 0; lane < kFloatLanes; ++lane) lanes[lane] += q[from + lane] * k[from + lane];
  for (int64_t lane = 0; from + lane < size; ++lane) lanes[lane] += q[from + lane] * k[from + lane];
  return plain_lanes(lanes);
}

inline void plain_float_mix(const float *p, const float *v, int64_t time, int64_t size, int64_t from, double *wide) {
  for (int64_t d = from; d < size; ++d) {
    float sum = 0;
    for (int64_t t = 0; t < time; ++t) sum += p[t] * v[t * size + d];
    wide[d] += (double)sum;
  }
}

}  // namespace
