// Weights with a scale for every group of k: a warp sums a group at a time, and float32 sums follow in the groups' order.
#include "int8_warp.h"

namespace {

constexpr int kTiles = 2, kRows = 8 * kTiles / 2;  // rows of x a block
constexpr int kOutputs = kRows * kChannels, kEach = (kOutputs + kThreads - 1) / kThreads;

__global__ void groups(TsCudaRows rows, TsCudaTail tail, int64_t group_size, int64_t count, int64_t channel_blocks) {
  __shared__ int32_t sums[kWarps][kChannels][8 * kTiles + 1];
  const int warp = (int)threadIdx.x / 32;
  const int64_t column0 = blockIdx.x % channel_blocks * kChannels, row0 = blockIdx.x / channel_blocks * kRows;
  const int8_t *weight = tail.layer.weight + column0 * rows.stride, *q = rows.q + row0 * 2 * rows.stride;
  float y[kEach] = {};
  for (int64_t first = 0; first < count; first += kWarps) {
    const int64_t from = (first + warp) * group_size, end = from + group_size;
    int32_t c[kTiles][4] = {};
    if (first + warp < count)
      add_products<kTiles>(c, weight, q, (rows.count - row0) * 2, rows.stride, from, end < rows.stride ? end : rows.stride, kChunk);
    put_sums<kTiles>(c, sums[warp]);
    __syncthreads();
    for (int each = 0; each < kEach; ++each) {
      const int at = (int)threadIdx.x + each * kThreads, i = at / kChannels, j = at % kChannels;
      const int64_t column = column0 + j;
      if (at >= kOutputs || column >= tail.layer.n) continue;
      for (int64_t group = first; group < count && group < first + kWarps; ++group) {
        const int32_t *found = &sums[group - first][j][2 * i];
        y[each] = y[each] + ts_sum_12(found[0], found[1], 0, 0) * tail.layer.scale[group * tail.layer.n + column];
      }
    }
    __syncthreads();
  }
  for (int each = 0; each < kEach; ++each) {
    const int at = (int)threadIdx.x + each * kThreads;
    const int64_t row = row0 + at / kChannels, column = column0 + at % kChannels;
    if (at < kOutputs && row < rows.count && column < tail.layer.n) write_result(tail, row, column, y[each] * tail.row_scale[row]);
  }
}

}  // namespace

int32_t ts_cuda_groups(const TsCudaRows &rows, const TsCudaTail &tail, int64_t k, int64_t group_size, void *stream) {
  const int64_t channel_blocks = (tail.layer.n + kChannels - 1) / kChannels, blocks = (rows.count + kRows - 1) / kRows * channel_blocks;
  if (blocks > INT32_MAX) return ts_cuda_fail(TS_INVALID, "the result is too large for one call");
  TS_LAUNCH(groups, (unsigned)blocks, stream, rows, tail, group_size, (k + group_size - 1) / group_size, channel_blocks);
  return ts_cuda_launched();
}
