// Integer products by the tensor cores: a warp multiplies 16 channels of a weight with up to 8 T quantised rows.
#pragma once

#include "int8.h"
#include "warp.h"

#if !defined(TS_CUDA_ON_CPU)
// c (16 x 8) += a (16 x 32) * b (32 x 8), the operands spread over the lanes as the PTX manual says of m16n8k32.
__device__ inline void mma_m16n8k32(int32_t (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// Has the second cache fetch what will be read.
__device__ inline void ask_for(const void *line) { asm volatile("prefetch.global.L2 [%0];" ::"l"(line)); }
#endif

namespace {

constexpr int kChannels = 16;
constexpr int64_t kChunk = 64;  // steps of k a warp takes at once

// Adds the products over [from, to) in strides of `step`. A lane reads 16 bytes that lie together where the manual wants
// four words from different places; weights and rows are mixed up in the same way, and a sum does not mind.
template <int T>
__device__ void add_products(int32_t (&c)[T][4], const int8_t *weight, const int8_t *q, int64_t rows, int64_t stride,
                             int64_t from, int64_t to, int64_t step) {
  const int lane = (int)threadIdx.x % 32, group = lane / 4;
  const uint4 nothing = {0, 0, 0, 0};
  TS_UNROLL(2)
  for (int64_t k = from; k < to; k += step) {
    const int64_t at = k + lane % 4 * 16;
    const bool inside = at < to;
    const uint4 upper = inside ? *(const uint4 *)(weight + group * stride + at) : nothing;
    const uint4 lower = inside ? *(const uint4 *)(weight + (group + 8) * stride + at) : nothing;
    TS_UNROLL(8)
    for (int t = 0; t < T; ++t) {
      const uint4 x = inside && 8 * t + group < rows ? *(const uint4 *)(q + (8 * t + group) * stride + at) : nothing;
      mma_m16n8k32(c[t], upper.x, lower.x, upper.y, lower.y, x.x, x.y);
      mma_m16n8k32(c[t], upper.z, lower.z, upper.w, lower.w, x.z, x.w);
    }
  }
}

// The warp's sums as a table of channels and rows.
template <int T>
__device__ void put_sums(const int32_t (&c)[T][4], int32_t (&sums)[kChannels][8 * T + 1]) {
  const int lane = (int)threadIdx.x % 32, group = lane / 4;
  for (int t = 0; t < T; ++t) {
    const int row = 8 * t + lane % 4 * 2;
    sums[group][row] = c[t][0];
    sums[group][row + 1] = c[t][1];
    sums[group + 8][row] = c[t][2];
    sums[group + 8][row + 1] = c[t][3];
  }
}

}  // namespace
