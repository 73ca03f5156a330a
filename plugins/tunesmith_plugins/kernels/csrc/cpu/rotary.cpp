// Rotary position embedding, in place.
#include "error.h"
#include "tunesmith.h"

namespace {

// x holds heads of 2 * half values; cos and sin repeat in the upper half, as transformers makes them.
void rotate(float *x, int64_t heads, int64_t half, const float *cos, const float *sin) {
  for (int64_t head = 0; head < heads; ++head, x += 2 * half) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = x[i], b = x[half + i];
      x[i] = a * cos[i] + -b * sin[i];
      x[half + i] = b * cos[half + i] + a * sin[half + i];
    }
  }
}

}  // namespace

extern "C" int32_t ts_rotary_words(const int64_t *words, int64_t count) {
  if (!words || count != 11) return ts_fail(TS_INVALID, "rotary takes 11 words, not %lld", (long long)count);
  float *q = (float *)words[0], *k = (float *)words[1];
  const int64_t rows = words[2], head_dim = words[7], tables = words[10];
  const float *cos = (const float *)words[8], *sin = (const float *)words[9];
  if (rows < 0 || head_dim < 2 || head_dim % 2 || tables < 1 || !cos || !sin || (rows && (!q || !k)))
    return ts_fail(TS_INVALID, "rotary needs q, k, cos, sin and an even head_dim");
  for (int64_t row = 0; row < rows; ++row) {
    const float *c = cos + row % tables * head_dim, *s = sin + row % tables * head_dim;
    rotate(q + row * words[5], words[3], head_dim / 2, c, s);
    rotate(k + row * words[6], words[4], head_dim / 2, c, s);
  }
  return TS_OK;
}
