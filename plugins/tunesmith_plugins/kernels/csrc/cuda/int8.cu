// A call of the int8 layers: rows once, then every layer by the way that suits its size.
#include "int8.h"

#include "int8_call.h"

namespace {

constexpr int64_t kMostSums = 64 << 20;  // bytes of int32 sums from cublasLt at a time
constexpr int64_t kFewRows = 16;         // up to so many quantised rows the kernel of int8_product.cu is the better one

__global__ void finish(const int32_t *sums, int64_t channels, int64_t first, int64_t count, TsCudaTail tail, int per_row) {
  const int64_t size = count * tail.layer.n;
  const int64_t at = (int64_t)blockIdx.x * kThreads + (int64_t)threadIdx.x;
  if (at >= size) return;
  const int64_t i = at / tail.layer.n, column = at % tail.layer.n;
  const int32_t *found = sums + i * per_row * channels + column;
  write_result(tail, first + i, column, dequantised(tail, first + i, column, found[0], per_row == 2 ? found[channels] : 0));
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
    TS_LAUNCH(finish, (unsigned)((count * tail.layer.n + kThreads - 1) / kThreads), stream, sums, channels, first, count, tail, rows.per_row);
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
