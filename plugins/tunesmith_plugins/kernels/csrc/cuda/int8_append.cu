// New keys and values rounded to 8 bits on a CUDA device, a block a row of a head: the arithmetic of int8_append.h.
#include "int8_append.h"

#include "warp.h"

namespace {

__global__ void append(TsAppend a) {
  const TsAppendRow at = ts_append_row(a, blockIdx.x);
  const char *x = (const char *)at.states->x + at.from * (a.dtype == TS_F32 ? 4 : 2);
  uint32_t most = 0;
  for (int64_t i = threadIdx.x; i < a.size; i += kThreads) {
    const uint32_t magnitude = float_to_bits(load_one(x, i, a.dtype)) & kMagnitude;
    most = magnitude > most ? magnitude : most;
  }
  most = block_most(most);
  const float scale = ts_state_scale(most);
  if (threadIdx.x == 0) at.states->scale[at.to] = scale;
  for (int64_t i = threadIdx.x; i < a.size; i += kThreads)
    at.states->q[at.to * a.size + i] = most >= kInfinity ? (int8_t)0 : ts_state(load_one(x, i, a.dtype), scale);
}

}  // namespace

extern "C" int32_t ts_cuda_int8_append_words(const int64_t *words, int64_t count) {
  if (!words || count < 1) return ts_cuda_fail(TS_INVALID, "appending needs a stream and its words");
  TsAppend a = {};
  const int32_t read = ts_read_append(words + 1, count - 1, ts_cuda_fail, &a);
  if (read != TS_OK || a.rows() == 0) return read;
  if (a.rows() > INT32_MAX) return ts_cuda_fail(TS_INVALID, "%lld rows are too many for one call", (long long)a.rows());
  TS_LAUNCH(append, (unsigned)a.rows(), (void *)words[0], a);
  return ts_cuda_launched();
}
