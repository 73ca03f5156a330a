// What a call of the int8 layers must be, and how one is read from words: the same on the CPU and on CUDA devices.
#pragma once

#include <math.h>

#include "numeric.h"
#include "tunesmith.h"

namespace {

typedef int32_t (*TsFail)(int32_t code, const char *format, ...);

inline int32_t ts_check_rows(const void *x, int64_t rows, int64_t k, int32_t dtype, TsFail fail) {
  if (rows < 0 || k < 1) return fail(TS_INVALID, "x must be (rows, k) with k >= 1, not (%lld, %lld)", (long long)rows, (long long)k);
  if (dtype != TS_F32 && dtype != TS_BF16) return fail(TS_UNSUPPORTED, "x must be float32 or bfloat16");
  if (rows && !x) return fail(TS_INVALID, "x must not be null");
  return TS_OK;
}

inline int32_t ts_check_int8(const ts_int8_args &a, TsFail fail) {
  const int32_t code = ts_check_rows(a.x, a.rows, a.k, a.dtype, fail);
  if (code != TS_OK) return code;
  if (a.k > TS_MAX_K)
    return fail(TS_INVALID, "k = %lld is above %d, where an int32 sum could overflow", (long long)a.k, TS_MAX_K);
  if (a.mode < TS_DYNAMIC || a.mode > TS_MIXED) return fail(TS_INVALID, "unknown mode %d", a.mode);
  if (a.mode == TS_STATIC && !(a.static_scale >= kSmallestScale && a.static_scale < HUGE_VALF && a.static_zero_point >= 0 && a.static_zero_point <= 255))
    return fail(TS_INVALID, "a static range needs a scale above 0 and a zero point in [0, 255]");
  if (a.group_size && (a.mode != TS_WEIGHT_ONLY || a.group_size < 0 || a.group_size > TS_MAX_K_12 || (a.group_size != 32 && a.group_size % 64)))
    return fail(TS_INVALID, "group_size must be 32 or a multiple of 64, on a weight-only layer");
  if (a.norm < TS_NO_NORM || a.norm > TS_LAYER_NORM || (a.norm && !a.norm_weight)) return fail(TS_INVALID, "norm %d needs its weight", a.norm);
  if (a.layer_count < 0 || (a.layer_count && !a.layers)) return fail(TS_INVALID, "layers must not be null");
  for (int64_t i = 0; i < a.layer_count; ++i) {
    const ts_int8_layer &layer = a.layers[i];
    if (layer.n < 0 || (layer.n && a.rows && (!layer.weight || !layer.scale || !layer.sum || !layer.out)))
      return fail(TS_INVALID, "layer %lld: weight, its scale, its sums and out must not be null", (long long)i);
    if (layer.activation < TS_NO_ACTIVATION || layer.activation > TS_GELU_TANH)
      return fail(TS_INVALID, "layer %lld: unknown activation %d", (long long)i, layer.activation);
    if (i && layer.multiply && layer.multiply == a.layers[i - 1].out && layer.n != a.layers[i - 1].n)
      return fail(TS_INVALID, "layer %lld multiplies by a layer of another width", (long long)i);
  }
  return TS_OK;
}

// A call as ts_int8_linears_words takes it.
struct TsInt8Call {
  static constexpr int64_t kFirst = 15, kEach = 10, kMostLayers = 40;
  ts_int8_layer layers[kMostLayers];
  ts_int8_args args;

  int32_t read(const int64_t *words, int64_t count, TsFail fail) {
    const int64_t number = (count - kFirst) / kEach;
    if (!words || count < kFirst || number > kMostLayers || count != kFirst + number * kEach)
      return fail(TS_INVALID, "%lld words are not 15 and 10 for each of at most 40 layers", (long long)count);
    for (int64_t i = 0; i < number; ++i) {
      const int64_t *w = words + kFirst + i * kEach;
      layers[i] = {(const int8_t *)w[0], (const float *)w[1], (const int32_t *)w[2], (const float *)w[3], (void *)w[4], w[5], w[6],
                   (const void *)w[8], (const void *)w[9], (int32_t)w[7], 0};
    }
    double static_scale, epsilon;
    memcpy(&static_scale, words + 7, sizeof static_scale);
    memcpy(&epsilon, words + 13, sizeof epsilon);
    args = {(const void *)words[0], words[1], words[2], words[3], (int32_t)words[4], (int32_t)words[5], words[6],
            layers, number, (float)static_scale, (int32_t)words[8], (int32_t)words[9], (int32_t)words[10],
            (const float *)words[11], (const float *)words[12], epsilon, (void *)words[14]};
    return TS_OK;
  }
};

}  // namespace
