// Arm with SDOT (ARMv8.2 and later): four products of signed bytes added to 32 bits in one instruction.
#include <arm_neon.h>

namespace {

typedef int32x4_t Sum;

constexpr int kVectors = 4;

inline __attribute__((always_inline)) Sum nothing_yet() { return vdupq_n_s32(0); }
inline __attribute__((always_inline)) Sum add_products(Sum sum, int8x16_t weights, int8x16_t row) { return vdotq_s32(sum, weights, row); }
inline __attribute__((always_inline)) int32x4_t total(Sum sum) { return sum; }

}  // namespace

#include "int8_neon.h"

extern const TsInt8Kernels ts_int8_neondot = TS_NEON_TABLE("neondot");
