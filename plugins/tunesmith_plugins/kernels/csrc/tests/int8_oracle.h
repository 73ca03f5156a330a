// What the tests of the int8 layers share: arrays whose end is guarded, layers with random weights, and what a result
// must be, from the definition.
#pragma once

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <random>
#include <string>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#define TS_GUARD_PAGES
#endif

#include "checks.h"
#include "int8_math.h"
#include "tunesmith.h"

namespace {

inline float real(double low, double high) { return (float)std::uniform_real_distribution<double>(low, high)(generator); }

// An array whose end is the end of what may be touched.
template <typename T>
class Guarded {
 public:
  explicit Guarded(int64_t n) : n_(n) {
#if defined(TS_GUARD_PAGES)
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = (size_t)n * sizeof(T);
    size_ = (bytes + page - 1) / page * page + 2 * page;
    base_ = (char *)mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    REQUIRE(base_ != MAP_FAILED);
    REQUIRE(mprotect(base_ + size_ - page, page, PROT_NONE) == 0 && mprotect(base_, page, PROT_NONE) == 0);
    data_ = (T *)(base_ + size_ - page - bytes);
#else
    base_ = (char *)calloc((size_t)n + 1, sizeof(T));
    data_ = (T *)base_;
#endif
  }
  Guarded(const Guarded &) = delete;
  ~Guarded() {
#if defined(TS_GUARD_PAGES)
    munmap(base_, size_);
#else
    free(base_);
#endif
  }
  T *get() const { return data_; }
  T &operator[](int64_t i) const { return data_[i]; }
  int64_t size() const { return n_; }

 private:
  int64_t n_;
  size_t size_ = 0;
  char *base_;
  T *data_;
};

inline bool same(float a, float b) { return a == b || (a != a && b != b); }

struct Layer {
  int64_t n, k, group;
  Guarded<int8_t> weight, packed;
  Guarded<float> scale, bias;
  Guarded<int32_t> sum;

  static int64_t groups(int64_t k, int64_t group) { return group ? (k + group - 1) / group : 1; }

  Layer(int64_t n_, int64_t k_, int64_t group_, int extreme)
      : n(n_), k(k_), group(group_), weight(n_ * k_), packed((n_ + 63) / 64 * 64 * ((k_ + 63) / 64 * 64)),
        scale(n_ * groups(k_, group_)), bias(n_), sum(n_ * groups(k_, group_)) {
    for (int64_t i = 0; i < n * k; ++i) weight[i] = (int8_t)(extreme ? (extreme == 1 ? -128 : 127) : pick(-128, 127));
    for (int64_t i = 0; i < scale.size(); ++i) scale[i] = real(.01, .1);
    for (int64_t j = 0; j < n; ++j) {
      bias[j] = real(-1, 1);
      for (int64_t t = 0; t < k; ++t) sum[(group ? t / group : 0) * n + j] += weight[j * k + t];
    }
    REQUIRE(ts_int8_pack(weight.get(), n, k, packed.get()) == TS_OK);
  }

  ts_int8_layer call(void *out, int32_t activation) const {
    ts_int8_layer layer = {};
    layer.weight = packed.get();
    layer.scale = scale.get();
    layer.sum = sum.get();
    layer.bias = bias.get();
    layer.out = out;
    layer.out_stride = layer.n = n;
    layer.activation = activation;
    return layer;
  }
};

// One row against one channel, from the definition.
inline float expected(const Layer &layer, const float *x, int64_t j, int32_t mode, int32_t activation, float static_scale, int32_t static_zero) {
  float low = 0, high = 0;
  for (int64_t t = 0; t < layer.k; ++t) {
    if (!isfinite(x[t])) return NAN;
    if (x[t] < low) low = x[t];
    if (x[t] > high) high = x[t];
  }
  if (mode == TS_MIXED) {
    const float inverse = 1.0f / ts_row_scale(low, high);
    const int32_t zero = ts_row_zero_point(low, inverse);
    int64_t squares = 0;
    for (int64_t t = 0; t < layer.k; ++t) {
      const int64_t code = (int64_t)ts_quantize_clamped(x[t], inverse, zero) - zero;
      squares += code * code;
    }
    const bool wide = layer.k <= TS_MIXED_K || (squares && squares < TS_MIXED_SQUARE * layer.k);
    mode = wide ? TS_WEIGHT_ONLY : TS_DYNAMIC;
  }
  float y = 0;
  if (mode == TS_WEIGHT_ONLY) {
    float scale = (-low > high ? -low : high) / 2047.0f;
    if (scale < kSmallestScale) scale = kSmallestScale;
    const float inverse = 1.0f / scale;
    const int64_t length = layer.group ? layer.group : layer.k;
    for (int64_t from = 0, g = 0; from < layer.k; from += length, ++g) {
      int64_t dot = 0, upper = 0, lower = 0;
      for (int64_t t = from; t < layer.k && t < from + length; ++t) {
        const int32_t q = ts_quantize_12(x[t], inverse);
        const int64_t w = layer.weight[j * layer.k + t];
        dot += (q - 2048) * w;
        upper += ((q >> 6) - 32) * w;
        lower += (q & 63) * w;
      }
      REQUIRE(layer.k > TS_MAX_K_12 || dot == (int32_t)dot);
      const float sum = layer.k > TS_MAX_K_12 ? (float)upper * 64.0f + (float)lower : (float)dot;
      if (layer.group) y = y + sum * layer.scale[g * layer.n + j];
      else y = sum * (scale * layer.scale[j]);
    }
    if (layer.group) y = y * scale;
  } else {
    const float scale = mode == TS_STATIC ? static_scale : ts_row_scale(low, high), inverse = 1.0f / scale;
    const int32_t zero = mode == TS_STATIC ? static_zero : ts_row_zero_point(low, inverse);
    int64_t dot = 0;
    for (int64_t t = 0; t < layer.k; ++t)
      dot += ((int64_t)ts_quantize_clamped(x[t], inverse, zero) - zero) * layer.weight[j * layer.k + t];
    REQUIRE(dot == (int32_t)dot);
    y = (float)dot * (scale * layer.scale[j]);
  }
  return ts_activate(y + layer.bias[j], activation);
}

}  // namespace
