// The loops of attention over an int8 cache that have a version for an instruction set; every version has the same bits.
#pragma once

#include <stdint.h>

struct TsAttentionLoops {
  // dots[t] = sum over d of q[d] * k[t * size + d]
  void (*dots)(const int16_t *q, const int8_t *k, int64_t time, int64_t size, int32_t *dots);
  // sums[d] = sum over t of p[t] * v[t * size + d]; at most kTokensAtOnce tokens (int8_attention.h)
  void (*mix)(const int16_t *p, const int8_t *v, int64_t time, int64_t size, int32_t *sums);
};

extern const TsAttentionLoops ts_attention_plain;
#if defined(TS_HAVE_AVX2)
extern const TsAttentionLoops ts_attention_avx2;
#endif
