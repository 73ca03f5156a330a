// 16 lanes as an array: what the others must equal.
#include <math.h>
#include <string.h>

#include "numeric.h"
#include "sampling.h"

#define TS_LANES inline

namespace {

struct F {
  float v[kLanes];
};
struct I {
  uint32_t v[kLanes];
};
struct M {
  uint32_t bits;
};

constexpr int kTogether = 1;  // vectors in flight at once
constexpr int kScanStreams = 1;
constexpr int64_t kScanAhead = 1024;

#define TS_EACH(Type, value)                        \
  Type result;                                      \
  for (int j = 0; j < kLanes; ++j) result.v[j] = value; \
  return result
#define TS_ANY(condition)                                                             \
  M result = {0};                                                                     \
  for (int j = 0; j < kLanes; ++j) result.bits |= (uint32_t)((condition) ? 1 : 0) << j; \
  return result

inline void prefetch(uintptr_t) {}
inline F set1(float v) { TS_EACH(F, v); }
inline F load_f32(const float *at) { TS_EACH(F, at[j]); }
inline F load_bf16(const uint16_t *at) { TS_EACH(F, ts_bf16_to_float(at[j])); }
inline F load_f16(const uint16_t *at) { TS_EACH(F, ts_f16_to_float(at[j])); }
inline void store_f32(float *at, const F &x) { memcpy(at, x.v, sizeof x.v); }
inline void store_integers(uint32_t *at, const I &x) { memcpy(at, x.v, sizeof x.v); }
inline F add(const F &a, const F &b) { TS_EACH(F, a.v[j] + b.v[j]); }
inline F sub(const F &a, const F &b) { TS_EACH(F, a.v[j] - b.v[j]); }
inline F mul(const F &a, const F &b) { TS_EACH(F, a.v[j] * b.v[j]); }
inline F div(const F &a, const F &b) { TS_EACH(F, a.v[j] / b.v[j]); }
inline F max(const F &a, const F &b) { TS_EACH(F, a.v[j] > b.v[j] ? a.v[j] : b.v[j]); }
inline I zero_integers() { TS_EACH(I, 0); }
inline I add_integers(const I &a, const I &b) { TS_EACH(I, a.v[j] + b.v[j]); }
inline I shift_left_23(const I &a) { TS_EACH(I, a.v[j] << 23); }
inline I bits_of_floats(const F &a) { TS_EACH(I, float_to_bits(a.v[j])); }
inline F floats_of_bits(const I &a) { TS_EACH(F, bits_to_float(a.v[j])); }
inline M no_lane() { return {0}; }
inline M lanes_of(uint16_t bits) { return {bits}; }
inline uint32_t bits_of(M m) { return m.bits; }
inline M either(M a, M b) { return {a.bits | b.bits}; }
inline M both(M a, M b) { return {a.bits & b.bits}; }
inline M but_not(M a, M b) { return {a.bits & ~b.bits}; }
inline M at_least(const F &a, const F &b) { TS_ANY(a.v[j] >= b.v[j]); }
inline M less(const F &a, const F &b) { TS_ANY(a.v[j] < b.v[j]); }
inline M unordered_lanes(const F &a, const F &b) { TS_ANY(a.v[j] != a.v[j] || b.v[j] != b.v[j]); }
inline F where(M m, const F &yes, const F &no) { TS_EACH(F, m.bits >> j & 1 ? yes.v[j] : no.v[j]); }
inline F keep(M m, const F &a) { TS_EACH(F, m.bits >> j & 1 ? a.v[j] : 0.0f); }

// Writes the chosen lanes one after the other, and their ids.
inline void compress(int32_t *ids, float *x, M m, uint32_t, const F &v, int32_t first) {
  int64_t n = 0;
  for (int j = 0; j < kLanes; ++j) {
    if (!(m.bits >> j & 1)) continue;
    ids[n] = first + j;
    x[n++] = v.v[j];
  }
}

// The same without ids; there is room for 16 values whatever the mask.
inline void squeeze(float *x, M m, uint32_t bits, const F &v) {
  int32_t unused[kLanes];
  compress(unused, x, m, bits, v, 0);
}

}  // namespace

#if defined(_MSC_VER)
#include <intrin.h>
#define __builtin_popcount __popcnt
#endif

#include "sampling_lanes.h"
#include "sampling_select.h"
#include "watermark.h"

extern const TsSampling ts_sampling_scalar = {TS_BY_TYPE(scan), {}, TS_BY_TYPE(collect), mass, split, nullptr, nullptr, nullptr, sample, kth, kth_of_few, kth_of_lanes, weights, weights_below, exps, divide, green, below};
