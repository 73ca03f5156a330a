// Rotary position embedding, in place.
#include "rotary.h"

#include "error.h"

namespace {

void rotate(float *x, int64_t heads, int64_t half, const float *cos, const float *sin) {
  for (int64_t head = 0; head < heads; ++head, x += 2 * half) {
    for (int64_t i = 0; i < half; ++i) ts_turn(x, half, i, cos, sin);
  }
}

}  // namespace

extern "C" int32_t ts_rotary_words(const int64_t *words, int64_t count) {
  TsRotary a = {};
  const int32_t read = ts_read_rotary(words, count, ts_fail, &a);
  if (read != TS_OK) return read;
  for (int64_t row = 0; row < a.rows; ++row) {
    const float *cos = a.cos + row % a.tables * a.head_dim, *sin = a.sin + row % a.tables * a.head_dim;
    rotate(a.q + row * a.q_stride, a.q_heads, a.head_dim / 2, cos, sin);
    rotate(a.k + row * a.k_stride, a.k_heads, a.head_dim / 2, cos, sin);
  }
  return TS_OK;
}
