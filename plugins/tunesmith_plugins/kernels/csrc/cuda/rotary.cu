// Rotary position embedding on a CUDA device, in place: one block a row, queries and keys in one launch.
#include "rotary.h"

#include "block.h"

namespace {

__global__ void turn_rows(TsRotary a) {
  const int64_t row = blockIdx.x, half = a.head_dim / 2;
  const float *cos = a.cos + row % a.tables * a.head_dim, *sin = a.sin + row % a.tables * a.head_dim;
  for (int64_t at = threadIdx.x; at < (a.q_heads + a.k_heads) * half; at += kThreads) {
    const int64_t head = at / half;
    float *x = head < a.q_heads ? a.q + row * a.q_stride + head * a.head_dim
                                : a.k + row * a.k_stride + (head - a.q_heads) * a.head_dim;
    ts_turn(x, half, at % half, cos, sin);
  }
}

}  // namespace

extern "C" int32_t ts_cuda_rotary_words(const int64_t *words, int64_t count) {
  if (!words || count < 1) return ts_cuda_fail(TS_INVALID, "rotary needs a stream and its words");
  TsRotary a = {};
  const int32_t read = ts_read_rotary(words + 1, count - 1, ts_cuda_fail, &a);
  if (read != TS_OK || a.rows == 0) return read;
  if (a.rows > INT32_MAX) return ts_cuda_fail(TS_INVALID, "%lld rows are too many for one call", (long long)a.rows);
  TS_LAUNCH(turn_rows, (unsigned)a.rows, (void *)words[0], a);
  return ts_cuda_launched();
}
