// The loops of attention, over an int8 cache and over a float32 one, that have a version for an instruction set; every version has
// the same bits.
#pragma once

#include <stdint.h>

struct TsAttentionLoops {
  // dots[t] = sum over d of q[d] * k[t * size + d]
  void (*dots)(const int16_t *q, const int8_t *k, int64_t time, int64_t size, int32_t *dots);
  // scores[t] = ts_score(dots[t], ...); returns the largest, and whether none is NaN
  float (*scores)(const int32_t *dots, const float *k_scale, const float *added, float x_scale, float scale, int64_t time, float *scores, bool *known);
  // numbers[t]: a score in, e = ts_attention_exp(score, most) times v_scale[t] (null: 1) out; e is added to lanes[t % kAttentionLanes].
  // Returns the largest result, 0 at least.
  float (*weigh)(const float *v_scale, float most, int64_t time, float *numbers, double *lanes);
  // rounded[t] = ts_weight_15(weights[t], by)
  void (*round)(const float *weights, float by, int64_t time, int16_t *rounded);
  // sums[d] = sum over t of p[t] * v[t * size + d]; at most kTokensAtOnce tokens (int8_attention.h)
  void (*mix)(const int16_t *p, const int8_t *v, int64_t time, int64_t size, int32_t *sums);
  // dots[t] = sum over d of q[d] * k[t * size + d], in the order of float_attention.h; `next` of the same shape (or null) is fetched meanwhile
  void (*float_dots)(const float *q, const float *k, const float *next, int64_t time, int64_t size, float *dots);
  // scores[t]: a dot in, dot * scale + added[t] out; returns the largest, and whether none is NaN
  float (*float_scores)(const float *added, float scale, int64_t time, float *scores, bool *known);
  // wide[d] += the float32 sum over t of p[t] * v[t * size + d]; `next` of the same shape (or null) is fetched meanwhile
  void (*float_mix)(const float *p, const float *v, const float *next, int64_t time, int64_t size, double *wide);
};

// Of the instruction set in use, null without one.
const TsAttentionLoops *ts_attention_loops();

extern const TsAttentionLoops ts_attention_plain;
#if defined(TS_HAVE_AVX2)
extern const TsAttentionLoops ts_attention_avx2;
#endif
