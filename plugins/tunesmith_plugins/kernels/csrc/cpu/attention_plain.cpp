// The loops of attention in plain C++: what the others must equal; for machines without one.
#include "attention_plain.h"

#include <math.h>

#include "attention.h"

namespace {

void dots(const int16_t *q, const int8_t *k, int64_t time, int64_t size, int32_t *dots) {
  for (int64_t t = 0; t < time; ++t, k += size) {
    int32_t sum = 0;
    for (int64_t d = 0; d < size; ++d) sum += (int32_t)q[d] * k[d];
    dots[t] = sum;
  }
}

void mix(const int16_t *p, const int8_t *v, int64_t time, int64_t size, int32_t *sums) {
  for (int64_t d = 0; d < size; ++d) sums[d] = 0;
  for (int64_t t = 0; t < time; ++t, v += size)
    for (int64_t d = 0; d < size; ++d) sums[d] += (int32_t)p[t] * v[d];
}

float scores(const int32_t *dots, const float *k_scale, const float *added, float x_scale, float scale, int64_t time, float *scores, bool *known) {
  return plain_scores(dots, k_scale, added, x_scale, scale, 0, time, scores, -HUGE_VALF, known);
}

float weigh(const float *v_scale, float most, int64_t time, float *numbers, double *lanes) {
  return plain_weigh(v_scale, most, 0, time, numbers, lanes, 0);
}

void round_all(const float *weights, float by, int64_t time, int16_t *rounded) { plain_round(weights, by, 0, time, rounded); }

void float_dots(const float *q, const float *k, const float *, int64_t time, int64_t size, float *dots) {
  for (int64_t t = 0; t < time; ++t) {
    float lanes[kFloatLanes] = {};
    dots[t] = plain_float_dot(q, k + t * size, 0, size, lanes);
  }
}

float float_scores(const float *added, float scale, int64_t time, float *scores, bool *known) {
  return plain_float_scores(added, scale, 0, time, scores, -HUGE_VALF, known);
}

// 16 channels at a time, which compilers keep in registers.
void float_mix(const float *p, const float *v, const float *, int64_t time, int64_t size, double *wide) {
  int64_t d = 0;
  for (; d + 16 <= size; d += 16) {
    float sums[16] = {};
    for (int64_t t = 0; t < time; ++t)
      for (int64_t i = 0; i < 16; ++i) sums[i] += p[t] * v[t * size + d + i];
    for (int64_t i = 0; i < 16; ++i) wide[d + i] += (double)sums[i];
  }
  plain_float_mix(p, v, time, size, d, wide);
}

}  // namespace

extern const TsAttentionLoops ts_attention_plain = {dots, scores, weigh, round_all, mix, float_dots, float_scores, float_mix};
