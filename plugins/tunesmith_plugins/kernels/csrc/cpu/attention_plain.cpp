// The loops of attention in plain C++: what the others must equal.
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

}  // namespace

extern const TsAttentionLoops ts_attention_plain = {dots, mix};
