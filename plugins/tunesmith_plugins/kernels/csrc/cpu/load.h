// Rows of any supported type as float32.
#pragma once

#include "numeric.h"
#include "tunesmith.h"

namespace {

inline int64_t ts_item_size(int32_t dtype) { return dtype == TS_F32 ? 4 : 2; }

inline const void *ts_row(const void *base, int64_t index, int64_t stride, int32_t dtype) {
  return (const char *)base + index * stride * ts_item_size(dtype);
}

inline float ts_load_one(const void *row, int64_t i, int32_t dtype) {
  if (dtype == TS_F32) return ((const float *)row)[i];
  const uint16_t half = ((const uint16_t *)row)[i];
  return dtype == TS_BF16 ? ts_bf16_to_float(half) : ts_f16_to_float(half);
}

inline void ts_load_row(const void *row, int64_t n, int32_t dtype, float *out) {
  if (dtype == TS_F32) {
    memcpy(out, row, (size_t)n * sizeof(float));
  } else if (dtype == TS_BF16) {
    for (int64_t i = 0; i < n; ++i) out[i] = ts_bf16_to_float(((const uint16_t *)row)[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = ts_f16_to_float(((const uint16_t *)row)[i]);
  }
}

}  // namespace
