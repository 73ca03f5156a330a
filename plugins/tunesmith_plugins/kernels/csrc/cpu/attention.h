// The loops of attention over an int8 cache that have a version for an instruction set; every version has the same bits.
#pragma once

#include <stdint.h>

struct TsAttentionLoops {
  // dots[t] = sum over d of q[d] * k[t * size + d]
  void (*dots)(const int16_t *q, const int8_t *k, int64_t time, int64_t size, int32_t *dots);
  // scores[t] = ts_score(dots[t], ...); returns the largest, and whether none is NaN
  float (*scores)(const int32_t *dots, const float *k_scale, const float *added, float x_scale, float scale, int64_t time, float *scores, bool *known);
  // numbers[t]: a score in, e = ts_attention_exp(score, most) times v_scale[t] out; e is added to lanes[t % kAttentionLanes].
  // Returns the largest result, 0 at least.
  float (*weigh)(const float *v_scale, float most, int64_t time, float *numbers, double *lanes);
  // rounded[t] = ts_weight_15(weights[t], by)
  void (*round)(const float *weights, float by, int64_t time, int16_t *rounded);
  // sums[d] = sum over t of p[t] * v[t * size + d]; at most kTokensAtOnce tokens (int8_attention.h)
  void (*mix)(const int16_t *p, const int8_t *v, int64_t time, int64_t size, int32_t *sums);
};

extern const TsAttentionLoops ts_attention_plain;
#if defined(TS_HAVE_AVX2)
extern const TsAttentionLoops ts_attention_avx2;
#endif
