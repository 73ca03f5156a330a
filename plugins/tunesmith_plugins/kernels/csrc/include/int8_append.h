// New keys and values of an int8 cache: a scale for each row of a head, absmax / 127, and integers in [-127, 127]. Shared by the
// CPU and the CUDA library; int8_reference.py says the same in torch.
#pragma once

#include "int8_call.h"

namespace {

constexpr float kLargestState = 127.0f;
constexpr uint32_t kMagnitude = 0x7fffffffu, kInfinity = 0x7f800000u;

// Keys or values: (batch, heads, fresh, size) as a model made them, and the store they go to.
struct TsStates {
  const void *x;
  int64_t batch_stride, head_stride, token_stride;
  int8_t *q;
  float *scale;
};

// A call, as ts_int8_append_words takes it.
struct TsAppend {
  int64_t batch, heads, fresh, size;
  int32_t dtype;
  int64_t room, first;
  TsStates kinds[2];

  int64_t rows() const { return 2 * batch * heads * fresh; }
};

// Where one row comes from, in numbers from x, and the row of the store that it goes to.
struct TsAppendRow {
  const TsStates *states;
  int64_t from, to;
};

TS_HD TsAppendRow ts_append_row(const TsAppend &a, int64_t index) {
  const int64_t token = index % a.fresh, head = index / a.fresh % a.heads, row = index / a.fresh / a.heads % a.batch;
  const TsStates &states = a.kinds[index / a.fresh / a.heads / a.batch];
  return {&states, row * states.batch_stride + head * states.head_stride + token * states.token_stride,
          (row * a.heads + head) * a.room + a.first + token};
}

// most: the largest magnitude's bits, which are those of a NaN if there is one.
TS_HD float ts_state_scale(uint32_t most) {
  const float scale = bits_to_float(most) / kLargestState;
  return scale < kSmallestScale ? kSmallestScale : scale;
}

// x / scale, for rows that are finite; others are zeros.
TS_HD int8_t ts_state(float x, float scale) {
  const float q = (x / scale + kRoundFloat) - kRoundFloat;
  return (int8_t)(int32_t)(q < -kLargestState ? -kLargestState : q > kLargestState ? kLargestState : q);
}

// Reads and checks a call.
inline int32_t ts_read_append(const int64_t *words, int64_t count, TsFail fail, TsAppend *call) {
  if (!words || count != 19) return fail(TS_INVALID, "appending takes 19 words, not %lld", (long long)count);
  TsAppend a = {words[0], words[1], words[2], words[3], (int32_t)words[4], words[5], words[6], {}};
  if (a.batch < 0 || a.heads < 0 || a.fresh < 0 || a.size < 1 || a.first < 0 || a.first + a.fresh > a.room)
    return fail(TS_INVALID, "%lld tokens behind %lld do not fit a room of %lld", (long long)a.fresh, (long long)a.first, (long long)a.room);
  if (a.dtype < TS_F32 || a.dtype > TS_F16) return fail(TS_UNSUPPORTED, "keys and values must be float32, bfloat16 or float16");
  for (int i = 0; i < 2; ++i) {
    const int64_t *w = words + 7 + 6 * i;
    a.kinds[i] = {(const void *)w[0], w[1], w[2], w[3], (int8_t *)w[4], (float *)w[5]};
    if (a.rows() && (!a.kinds[i].x || !a.kinds[i].q || !a.kinds[i].scale)) return fail(TS_INVALID, "appending needs x, the store and its scales");
  }
  *call = a;
  return TS_OK;
}

}  // namespace
