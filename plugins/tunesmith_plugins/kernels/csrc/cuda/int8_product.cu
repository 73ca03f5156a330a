// Products and tail in one kernel. Few rows: the warps of a block share k, so that many blocks read the weights. Many
// rows: each warp has channels of its own.
#include "int8_row.h"
#include "int8_warp.h"

namespace {

constexpr int64_t kShort = 16 << 10;  // bytes of quantised rows that a block can have for itself
constexpr int64_t kAgain = 4 << 20;   // values that all blocks together may quantise: what another launch takes

// Results of a tile of rows from `first` and of channels from `column0`, of the sums of the warps that shared k.
template <int T>
__device__ void write_tile(const int32_t (&sums)[kWarps][kChannels][8 * T + 1], const TsCudaTail &tail, int64_t count, int per_row, int64_t first,
                           int64_t column0, int columns, int split) {
  for (int at = (int)threadIdx.x; at < 8 * T / per_row * columns; at += kThreads) {
    const int i = at / columns, j = at % columns;
    const int64_t row = first / per_row + i, column = column0 + j;
    if (row >= count || column >= tail.layer.n) continue;
    int32_t one = 0, two = 0;
    for (int part = 0; part < split; ++part) {
      const int32_t *found = &sums[j / kChannels * split + part][j % kChannels][i * per_row];
      one += found[0];
      if (per_row == 2) two += found[1];
    }
    write_result(tail, row, column, dequantised(tail, row, column, one, two));
  }
}

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
  write_tile<T>(sums, tail, rows.count, rows.per_row, first, column0, columns, split);
}

// A few short rows: every block quantises them for itself, warps sharing a row where there are fewer rows.
template <int T>
__global__ void few_rows(ts_int8_args a, TsCudaTail tail, int64_t stride, int per_row) {
  alignas(16) __shared__ int8_t q[kShort];
  __shared__ int32_t sums[kWarps][kChannels][8 * T + 1];
  __shared__ uint32_t found[kWarps][2];
  __shared__ float scales[8 * T];
  __shared__ int32_t zero_points[8 * T];
  const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, count = (int)a.rows;
  const int64_t column0 = (int64_t)blockIdx.x * kChannels;
  const int8_t *weight = tail.layer.weight + column0 * stride;
  for (int64_t at = (int64_t)threadIdx.x * 128; at < kChannels * stride; at += kThreads * 128) ask_for(weight + at);
  int share = kWarps;
  while (share > 1 && share * count > kWarps) share /= 2;
  for (int round = 0; round < count; round += kWarps / share) {
    const int index = round + warp / share;
    const bool there = index < count;
    const int64_t from = 4 * (warp % share * 32 + lane), step = 4 * 32 * share;
    const Row row = row_of(a, there ? index : 0);
    uint32_t keys[2] = {};
    if (there) widen(a, row, from, step, keys);
    for (int i = 0; i < 2; ++i) {
      const uint32_t key = __reduce_max_sync(~0u, keys[i]);
      if (lane == 0) found[warp][i] = key;
    }
    __syncthreads();
    for (int other = 0; other < share; ++other)
      for (int i = 0; i < 2; ++i) {
        const uint32_t key = found[warp / share * share + other][i];
        keys[i] = key > keys[i] ? key : keys[i];
      }
    if (there) {
      const Codes codes = codes_of(a, keys);
      if (warp % share == 0 && lane == 0) scales[index] = codes.scale, zero_points[index] = codes.zero_point;
      for (int64_t i = from; i < stride; i += step) {
        float v[4];
        uint32_t packed[2];
        four_of(a, row, i, v);
        four_codes(a, codes, kOffset, i, v, packed);
        for (int half = 0; half < per_row; ++half) *(uint32_t *)(q + (index * per_row + half) * stride + i) = packed[half];
      }
    }
    __syncthreads();
  }
  int32_t c[T][4] = {};
  add_products<T>(c, weight, q, a.rows * per_row, stride, warp * kChunk, stride, kWarps * kChunk);
  put_sums<T>(c, sums[warp]);
  __syncthreads();
  tail.row_scale = scales;
  tail.zero_point = zero_points;
  write_tile<T>(sums, tail, a.rows, per_row, 0, column0, kChannels, kWarps);
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

int32_t ts_cuda_few_rows(const ts_int8_args &args, const TsCudaRows &rows, const TsCudaTail &tail, void *stream) {
  const int64_t quantised = rows.count * rows.per_row, blocks = (tail.layer.n + kChannels - 1) / kChannels;
  if (args.norm || args.norm_out || args.group_size || quantised > 16 || quantised * rows.stride > kShort || rows.count * args.k * blocks > kAgain)
    return TS_UNSUPPORTED;
  ts_int8_args own = args;
  own.layers = nullptr;  // of the host
  if (quantised <= 8) TS_LAUNCH(few_rows<1>, (unsigned)blocks, stream, own, tail, rows.stride, rows.per_row);
  else TS_LAUNCH(few_rows<2>, (unsigned)blocks, stream, own, tail, rows.stride, rows.per_row);
  return ts_cuda_launched();
}
