// Rotary position embedding (Su et al., 2021), shared by the CPU and the CUDA library.
#pragma once

#include "int8_call.h"

namespace {

// A call, as ts_rotary_words takes it.
struct TsRotary {
  float *q, *k;
  int64_t rows, q_heads, k_heads, q_stride, k_stride, head_dim;
  const float *cos, *sin;
  int64_t tables;
};

// Turns the pair (i, half + i) of a head; cos and sin repeat in the upper half, as transformers makes them.
TS_HD void ts_turn(float *head, int64_t half, int64_t i, const float *cos, const float *sin) {
  const float a = head[i], b = head[half + i];
  head[i] = a * cos[i] + -b * sin[i];
  head[half + i] = b * cos[half + i] + a * sin[half + i];
}

// Reads and checks a call.
inline int32_t ts_read_rotary(const int64_t *words, int64_t count, TsFail fail, TsRotary *call) {
  if (!words || count != 11) return fail(TS_INVALID, "rotary takes 11 words, not %lld", (long long)count);
  const TsRotary a = {(float *)words[0], (float *)words[1], words[2], words[3], words[4], words[5], words[6], words[7],
                      (const float *)words[8], (const float *)words[9], words[10]};
  if (a.rows < 0 || a.head_dim < 2 || a.head_dim % 2 || a.tables < 1 || !a.cos || !a.sin || (a.rows && (!a.q || !a.k)))
    return fail(TS_INVALID, "rotary needs q, k, cos, sin and an even head_dim");
  *call = a;
  return TS_OK;
}

}  // namespace
