// Products and tail in one kernel. Few rows: the warps of a block share k, so that many blocks read the weights. Many
// rows: each warp has channels of its own.
#include "int8_warp.h"

namespace {

template <int T>
__global__ void product(TsCudaRows rows, TsCudaTail tail, int split, int64_t channel_blocks) {
  __shared__ int32_t sums[kWarps][kChannels][8 * T + 1];
  const int warp = (int)threadIdx.x / 32, columns = kWarps / split * kChannels;
  const int64_t column0 = blockIdx.x % channel_blocks * columns, first = blockIdx.x / channel_blocks * (8 * T);
  const int64_t channel = column0 + warp / split * kChannels;
  int32_t c[T][4] = {};
  if (channel < tail.layer.n)
    add_products<T>(c, tail.layer.weight + channel * rows.stride, rows.q + first * rows.stride, rows.count * rows.per_row - first,
                    rows.stride, warp % split * kChunk, rows.stride, split * kChunk);
  put_sums<T>(c, sums[warp]);
  __syncthreads();
  for (int at = (int)threadIdx.x; at < 8 * T / rows.per_row * columns; at += kThreads) {
    const int i = at / columns, j = at % columns;
    const int64_t row = first / rows.per_row + i, column = column0 + j;
    if (row >= rows.count || column >= tail.layer.n) continue;
    int32_t one = 0, two = 0;
    for (int part = 0; part < split; ++part) {
      const int32_t *found = &sums[j / kChannels * split + part][j % kChannels][i * rows.per_row];
      one += found[0];
      if (rows.per_row == 2) two += found[1];
    }
    write_result(tail, row, column, dequantised(tail, row, column, one, two));
  }
}

template <int T>
int32_t launch(const TsCudaRows &rows, const TsCudaTail &tail, int split, void *stream) {
  const int64_t columns = kWarps / split * kChannels, channel_blocks = (tail.layer.n + columns - 1) / columns;
  const int64_t blocks = (rows.count * rows.per_row + 8 * T - 1) / (8 * T) * channel_blocks;
  if (blocks > INT32_MAX) return ts_cuda_fail(TS_INVALID, "the result is too large for one call");
  TS_LAUNCH(product<T>, (unsigned)blocks, stream, rows, tail, split, channel_blocks);
  return ts_cuda_launched();
}

}  // namespace

int32_t ts_cuda_product(const TsCudaRows &rows, const TsCudaTail &tail, void *stream) {
  const int64_t quantised = rows.count * rows.per_row;
  if (quantised <= 8) return launch<1>(rows, tail, kWarps, stream);
  if (quantised <= 16) return launch<2>(rows, tail, kWarps, stream);
  return launch<8>(rows, tail, 1, stream);
}
