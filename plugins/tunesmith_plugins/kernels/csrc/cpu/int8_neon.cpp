// Every 64-bit Arm: products of bytes as 16 bits, of which pairs are added to 32 bits; neither step can overflow.
#include <arm_neon.h>

namespace {

struct Sum {
  int32x4_t first, second;  // of the first two channels and of the other two; pairs of lanes belong together
};

constexpr int kVectors = 2;

inline __attribute__((always_inline)) Sum nothing_yet() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }
inline __attribute__((always_inline)) Sum add_products(const Sum &sum, int8x16_t weights, int8x16_t row) {
  return {vpadalq_s16(sum.first, vmull_s8(vget_low_s8(weights), vget_low_s8(row))),
          vpadalq_s16(sum.second, vmull_high_s8(weights, row))};
}
inline __attribute__((always_inline)) int32x4_t total(const Sum &sum) { return vpaddq_s32(sum.first, sum.second); }

}  // namespace

#include "int8_neon.h"

extern const TsInt8Kernels ts_int8_neon = TS_NEON_TABLE("neon");
