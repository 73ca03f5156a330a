// The loops over tokens of attention in plain C++: what the vector versions must equal, and what they do with the last few tokens.
#pragma once

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
    numbers[t] = e * v_scale[t];
    largest = numbers[t] > largest ? numbers[t] : largest;
  }
  return largest;
}

inline void plain_round(const float *weights, float by, int64_t from, int64_t time, int16_t *rounded) {
  for (int64_t t = from; t < time; ++t) rounded[t] = ts_weight_15(weights[t], by);
}

}  // namespace
