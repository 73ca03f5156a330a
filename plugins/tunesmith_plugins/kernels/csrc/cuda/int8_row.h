// A row of x to bytes, four values at a time: for the kernel that makes all rows, and for the one that multiplies a few at once.
#pragma once

#include "int8.h"
#include "warp.h"

namespace {

constexpr uint32_t kBadRow = ~0u;  // above the key of every number

// What a norm does to a row: (x - centre) * factor * weight + bias.
struct Norm {
  float centre, factor;
};

struct Row {
  const void *x;
  bool whole;  // four values can be read at a time
  Norm norm;
};

// How a row is rounded.
struct Codes {
  float scale, inverse;
  int32_t zero_point;
  bool bad;  // it is not finite: zeros, and a scale that says so
};

__device__ inline Row row_of(const ts_int8_args &a, int64_t row) {
  const char *x = (const char *)a.x + row * a.row_stride * (a.dtype == TS_F32 ? 4 : 2);
  return {x, (uintptr_t)x % (a.dtype == TS_F32 ? 16 : 8) == 0, {0, 1}};
}

// Values [i, i + 4) after the norm, zeros beyond the row's end; 4 divides i.
__device__ inline void four_of(const ts_int8_args &a, const Row &row, int64_t i, float (&v)[4]) {
  if (row.whole && i + 4 <= a.k && a.dtype == TS_F32) {
    const uint4 found = *(const uint4 *)((const float *)row.x + i);
    v[0] = bits_to_float(found.x), v[1] = bits_to_float(found.y), v[2] = bits_to_float(found.z), v[3] = bits_to_float(found.w);
  } else if (row.whole && i + 4 <= a.k) {
    const uint2 found = *(const uint2 *)((const uint16_t *)row.x + i);
    v[0] = ts_bf16_to_float((uint16_t)found.x), v[1] = ts_bf16_to_float((uint16_t)(found.x >> 16));
    v[2] = ts_bf16_to_float((uint16_t)found.y), v[3] = ts_bf16_to_float((uint16_t)(found.y >> 16));
  } else {
    for (int j = 0; j < 4; ++j) v[j] = i + j < a.k ? ts_load(row.x, i + j, a.dtype) : 0;
  }
  if (!a.norm) return;
  for (int j = 0; j < 4; ++j) {
    if (i + j >= a.k) continue;
    const float y = (v[j] - row.norm.centre) * row.norm.factor * a.norm_weight[i + j];
    v[j] = a.norm_bias ? y + a.norm_bias[i + j] : y;
  }
}

// Raises the keys of minus the lowest value and of the highest one, 0 among them, by those at `from` and every `step` behind it.
__device__ inline void widen(const ts_int8_args &a, const Row &row, int64_t from, int64_t step, uint32_t (&keys)[2]) {
  float low = 0, high = 0;
  bool bad = false;
  TS_UNROLL(2)
  for (int64_t i = from; i < a.k; i += step) {
    float v[4];
    four_of(a, row, i, v);
    for (int j = 0; j < 4; ++j) {
      bad |= (float_to_bits(v[j]) & 0x7f800000u) == 0x7f800000u;
      low = v[j] < low ? v[j] : low;
      high = v[j] > high ? v[j] : high;
    }
  }
  keys[0] = ts_order_key(-low);
  keys[1] = bad ? kBadRow : ts_order_key(high);
}

__device__ inline Codes codes_of(const ts_int8_args &a, const uint32_t (&keys)[2]) {
  const bool bad = keys[1] == kBadRow;
  const float low = bad ? 0 : -key_to_float(keys[0]), high = bad ? 0 : key_to_float(keys[1]);
  float scale = a.static_scale;
  if (a.mode == TS_DYNAMIC) scale = ts_row_scale(low, high);
  if (a.mode == TS_WEIGHT_ONLY) scale = ts_row_scale_12(low, high);
  const float inverse = 1.0f / scale;
  const int32_t zero = bad || a.mode == TS_WEIGHT_ONLY ? 0 : a.mode == TS_STATIC ? a.static_zero_point : ts_row_zero_point(low, inverse);
  return {bad ? bits_to_float(0x7fc00000u) : scale, inverse, zero, bad};
}

// Four values as bytes, q - offset; of a row in 12 bits the upper six less 32, and the lower six.
__device__ inline void four_codes(const ts_int8_args &a, const Codes &codes, int offset, int64_t i, const float (&v)[4], uint32_t (&packed)[2]) {
  packed[0] = packed[1] = 0;
  for (int j = 0; j < 4; ++j) {
    const bool there = i + j < a.k && !codes.bad;
    if (a.mode == TS_WEIGHT_ONLY) {
      const int32_t bits = there ? ts_quantize_12(v[j], codes.inverse) : 2048;
      packed[0] |= (uint32_t)(uint8_t)((bits >> 6) - 32) << (8 * j);
      packed[1] |= (uint32_t)(bits & 63) << (8 * j);
    } else if (there) {
      packed[0] |= (uint32_t)(uint8_t)(ts_quantize_clamped(v[j], codes.inverse, codes.zero_point) - offset) << (8 * j);
    }
  }
}

}  // namespace
