// A call of the int8 layers: rows once, then every layer by the way that suits its size.
#include "int8.h"

#include "int8_call.h"

namespace {

constexpr int64_t kMostSums = 64 << 20;  // bytes of int32 sums from cublasLt at a time
constexpr int64_t kFewRows = 16;         // up to so many quantised rows the kernel of int8_product.cu is the better one

// Four columns a thread.
__global__ void finish(const int32_t *sums, int64_t channels, int64_t first, unsigned count, TsCudaTail tail, int per_row) {
  const unsigned n = (unsigned)tail.layer.n, across = (n + 3) / 4, at = blockIdx.x * (unsigned)kThreads + threadIdx.x, i = at / across;
  if (i >= count) return;
  const unsigned column = at % across * 4;
  const int64_t row = first + i, place = row * tail.layer.out_stride + column;
  const int32_t *found = sums + i * per_row * channels + column;
  const uint4 nothing = {0, 0, 0, 0}, one = *(const uint4 *)found, two = per_row == 2 ? *(const uint4 *)(found + channels) : nothing;
  const uint32_t ones[] = {one.x, one.y, one.z, one.w}, twos[] = {two.x, two.y, two.z, two.w};
  float y[4] = {};
  TS_UNROLL(4)
  for (unsigned j = 0; j < 4; ++j)
    if (column + j < n) y[j] = finished(tail, row, column + j, dequantised(tail, row, column + j, (int32_t)ones[j], (int32_t)twos[j]));
  const bool full = column + 4 <= n;
  if (full && tail.dtype == TS_F32 && (uintptr_t)((float *)tail.layer.out + place) % 16 == 0) {
    *(uint4 *)((float *)tail.layer.out + place) = {float_to_bits(y[0]), float_to_bits(y[1]), float_to_bits(y[2]), float_to_bits(y[3])};
  } else if (full && tail.dtype == TS_BF16 && (uintptr_t)((uint16_t *)tail.layer.out + place) % 8 == 0) {
    *(uint2 *)((uint16_t *)tail.layer.out + place) = {ts_float_to_bf16(y[0]) | (uint32_t)ts_float_to_bf16(y[1]) << 16,
                                                      ts_float_to_bf16(y[2]) | (uint32_t)ts_float_to_bf16(y[3]) << 16};
  } else {
    TS_UNROLL(4)
    for (unsigned j = 0; j < 4; ++j)
      if (column + j < n) ts_store(tail.layer.out, place + j, tail.dtype, y[j]);
  }
}

// Where things lie in the workspace.
struct Space {
  int64_t stride, scale, zero_point, sums, total;
  int64_t rows_at_once;  // of x, by cublasLt; 0: not used
  int per_row;

  Space(int64_t rows, int64_t k, int32_t mode, int64_t group_size, int64_t widest) {
    per_row = mode == TS_WEIGHT_ONLY ? 2 : 1;
    stride = up(k, kAlign);
    scale = up(rows * per_row * stride, 256);
    zero_point = scale + up(rows * 4, 256);
    sums = zero_point + up(rows * 4, 256);
    const int64_t row_bytes = up(widest, kAlign) * 4 * per_row;
    rows_at_once = 0;
    if (!group_size && rows * per_row > kFewRows && widest > 0 && ts_cublaslt_ready()) {
      rows_at_once = kMostSums / row_bytes;
      if (rows_at_once < 2 * kFewRows) rows_at_once = 2 * kFewRows;
      if (rows_at_once > rows) rows_at_once = rows;
    }
    total = sums + rows_at_once * row_bytes;
  }
};

// TS_UNSUPPORTED: cublasLt would not, and nothing was done.
int32_t by_cublaslt(const TsCudaRows &rows, const TsCudaTail &tail, int64_t rows_at_once, int32_t *sums, void *stream) {
  const int64_t channels = up(tail.layer.n, kAlign);
  for (int64_t first = 0; first < rows.count; first += rows_at_once) {
    const int64_t count = rows.count - first < rows_at_once ? rows.count - first : rows_at_once;
    const int8_t *q = rows.q + first * rows.per_row * rows.stride;
    if (!ts_cublaslt_product(q, count * rows.per_row, tail.layer.weight, channels, rows.stride, sums, stream))
      return first ? ts_cuda_fail(TS_INTERNAL, "cublasLt refused row %lld of a product that it had begun", (long long)first) : TS_UNSUPPORTED;
    const int64_t fours = count * ((tail.layer.n + 3) / 4);  // of at most kMostSums, or a few rows of a weight: within 32 bits
    TS_LAUNCH(finish, (unsigned)((fours + kThreads - 1) / kThreads), stream, sums, channels, first, (unsigned)count, tail, rows.per_row);
    const int32_t code = ts_cuda_launched();
    if (code != TS_OK) return code;
  }
  return TS_OK;
}

}  // namespace

extern "C" int64_t ts_cuda_int8_workspace(int64_t rows, int64_t k, int32_t mode, int64_t group_size, int64_t widest) {
  return Space(rows, k, mode, group_size, widest).total;
}

extern "C" int32_t ts_cuda_int8_linears(const ts_int8_args *args, void *workspace, int64_t workspace_bytes, void *stream) {
  if (!args) return ts_cuda_fail(TS_INVALID, "no arguments");
  const ts_int8_args &a = *args;
  int32_t code = ts_check_int8(a, ts_cuda_fail);
  if (code == TS_OK && a.mode == TS_MIXED)
    return ts_cuda_fail(TS_UNSUPPORTED, "rows of two kinds are two calls on CUDA: one in 8 bits, and one in 12 for the rows that need them");
  if (code != TS_OK || a.rows == 0) return code;
  int64_t widest = 0;
  for (int64_t i = 0; i < a.layer_count; ++i) {
    if (a.layers[i].n > widest) widest = a.layers[i].n;
    if ((uintptr_t)a.layers[i].weight % kAlign) return ts_cuda_fail(TS_INVALID, "layer %lld: the weight is not aligned to 16 bytes", (long long)i);
  }
  if (!widest) return TS_OK;
  const Space space(a.rows, a.k, a.mode, a.group_size, widest);
  if (!workspace || workspace_bytes < space.total)
    return ts_cuda_fail(TS_INVALID, "the workspace has %lld bytes, %lld are needed", (long long)workspace_bytes, (long long)space.total);
  char *base = (char *)workspace;
  const TsCudaRows rows = {(int8_t *)base, (float *)(base + space.scale), (int32_t *)(base + space.zero_point), a.rows, space.stride, space.per_row};
  if (a.layer_count == 1) {
    code = ts_cuda_few_rows(a, rows, {a.layers[0], rows.scale, rows.zero_point, a.dtype, a.mode == TS_WEIGHT_ONLY, a.k > TS_MAX_K_12}, stream);
    if (code != TS_UNSUPPORTED) return code;
  }
  code = ts_cuda_make_rows(a, rows, stream);
  for (int64_t i = 0; i < a.layer_count && code == TS_OK; ++i) {
    if (!a.layers[i].n) continue;
    const TsCudaTail tail = {a.layers[i], rows.scale, rows.zero_point, a.dtype, a.mode == TS_WEIGHT_ONLY, a.k > TS_MAX_K_12};
    if (a.group_size) {
      code = ts_cuda_groups(rows, tail, a.k, a.group_size, stream);
      continue;
    }
    code = space.rows_at_once ? by_cublaslt(rows, tail, space.rows_at_once, (int32_t *)(base + space.sums), stream) : (int32_t)TS_UNSUPPORTED;
    if (code == TS_UNSUPPORTED) code = ts_cuda_product(rows, tail, stream);
  }
  return code;
}

extern "C" int32_t ts_cuda_int8_linears_words(const int64_t *words, int64_t count) {
  TsInt8Call call;
  if (!words || count < 3) return ts_cuda_fail(TS_INVALID, "too few words");
  const int32_t code = call.read(words + 3, count - 3, ts_cuda_fail);
  return code == TS_OK ? ts_cuda_int8_linears(&call.args, (void *)words[1], words[2], (void *)words[0]) : code;
}
