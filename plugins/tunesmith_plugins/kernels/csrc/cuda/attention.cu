// Attention over an int8 cache on a CUDA device, one block a query: the arithmetic of int8_attention.h, with the CPU's bits.
#include "int8_attention.h"

#include "block.h"

namespace {

// The query in 12 bits, zeros if it is not finite.
__device__ bool quantise(const TsAttentionQuery &at, int64_t size, int16_t *q, float *scale) {
  float low = 0, high = 0;
  uint64_t bad = 0;
  for (int64_t d = threadIdx.x; d < size; d += kThreads) {
    bad += !ts_finite(at.x[d]);
    low = at.x[d] < low ? at.x[d] : low;
    high = at.x[d] > high ? at.x[d] : high;
  }
  bad = block_sum(bad);
  *scale = ts_row_scale_12(-block_max(-low), block_max(high));
  const float inverse = 1.0f / *scale;
  for (int64_t d = threadIdx.x; d < size; d += kThreads) q[d] = bad ? 0 : ts_query_12(at.x[d], inverse);
  __syncthreads();
  return !bad;
}

// Four values at a time where they lie so.
__device__ int32_t dot(const int16_t *q, const int8_t *k, int64_t size) {
  int32_t sum = 0;
  int64_t d = 0;
  if ((uintptr_t)k % 4 == 0) {
    for (; d + 4 <= size; d += 4) {
      const uint32_t four = *(const uint32_t *)(k + d);
      TS_UNROLL(4)
      for (int i = 0; i < 4; ++i) sum += (int32_t)q[d + i] * (int8_t)(four >> (8 * i));
    }
  }
  for (; d < size; ++d) sum += (int32_t)q[d] * k[d];
  return sum;
}

// out[d] = the sum over tokens of p[t] v[t][d], times factor. Threads share out the channels and, where there are fewer
// channels than threads, the tokens.
__device__ void mix(const TsAttentionQuery &at, int64_t time, int64_t size, const float *p, double factor) {
  __shared__ int64_t sums[kThreads];
  const int columns = size < kThreads ? (int)size : kThreads, groups = kThreads / columns;
  const int column = (int)threadIdx.x % columns, group = (int)threadIdx.x / columns;
  for (int64_t first = 0; first < size; first += columns) {
    const int64_t d = first + column;
    int64_t wide = 0;
    for (int64_t t = group; d < size && group < groups && t < time;) {
      int32_t narrow = 0;
      for (int i = 0; i < kTokensAtOnce && t < time; ++i, t += groups) narrow += (int32_t)p[t] * at.v[t * size + d];
      wide += narrow;
    }
    sums[threadIdx.x] = wide;
    __syncthreads();
    if (group == 0 && d < size) {
      for (int other = 1; other < groups; ++other) wide += sums[other * columns + column];
      at.out[d] = (float)((double)wide * factor);
    }
    __syncthreads();
  }
}

__device__ void fill(const TsAttentionQuery &at, int64_t size, float value) {
  for (int64_t d = threadIdx.x; d < size; d += kThreads) at.out[d] = value;
}

__global__ void attend(TsAttention a, float *workspace) {
  __shared__ int16_t q[TS_MAX_K_12];
  __shared__ double lanes[kAttentionLanes];
  const float infinity = bits_to_float(0x7f800000u);
  const int64_t index = blockIdx.x;
  const TsAttentionQuery at = ts_attention_query(a, index);
  float *numbers = workspace + index * a.time;  // scores, then exponentials, then integer weights
  float scale;
  const bool finite = quantise(at, a.size, q, &scale);
  float most = -infinity;
  uint64_t bad = !finite;
  for (int64_t t = threadIdx.x; t < a.time; t += kThreads) {
    const float score = ts_score(dot(q, at.k + t * a.size, a.size), scale, at.k_scale[t], a.scale, at.added, t);
    numbers[t] = score;
    bad += score != score || !ts_finite(at.k_scale[t]) || !ts_finite(at.v_scale[t]);  // of rows that were not
    most = score > most ? score : most;
  }
  bad = block_sum(bad);
  most = block_max(most);
  if (bad || most == infinity) return fill(at, a.size, bits_to_float(0x7fc00000u));
  if (most == -infinity) return fill(at, a.size, 0);
  float largest = 0;
  for (int64_t t = threadIdx.x; t < a.time; t += kThreads) {
    const float e = ts_attention_exp(numbers[t], most), weight = e * at.v_scale[t];
    numbers[t] = e;
    largest = weight > largest ? weight : largest;
  }
  largest = block_max(largest);  // and numbers is whole
  for (int lane = (int)threadIdx.x; lane < kAttentionLanes; lane += kThreads) {
    double sum = 0;
    for (int64_t t = lane; t < a.time; t += kAttentionLanes) sum += (double)numbers[t];
    lanes[lane] = sum;
  }
  __syncthreads();
  double total = 0;
  for (int lane = 0; lane < kAttentionLanes; ++lane) total += lanes[lane];
  const float step = ts_weight_step(largest), by = 1.0f / step;
  for (int64_t t = threadIdx.x; t < a.time; t += kThreads) numbers[t] = ts_weight_15(numbers[t] * at.v_scale[t], by);
  __syncthreads();
  mix(at, a.time, a.size, numbers, (double)step / total);
}

}  // namespace

extern "C" int32_t ts_cuda_int8_attention_words(const int64_t *words, int64_t count) {
  if (!words || count < 3) return ts_cuda_fail(TS_INVALID, "attention needs a stream, work space and its words");
  TsAttention a = {};
  const int32_t read = ts_read_attention(words + 3, count - 3, ts_cuda_fail, &a);
  if (read != TS_OK) return read;
  const int64_t tasks = a.batch * a.heads * a.queries;
  if (tasks == 0) return TS_OK;
  if (tasks > INT32_MAX) return ts_cuda_fail(TS_INVALID, "%lld queries are too many for one call", (long long)tasks);
  if (!words[1] || words[2] < tasks * a.time * (int64_t)sizeof(float))
    return ts_cuda_fail(TS_INVALID, "attention needs %lld bytes of work space", (long long)(tasks * a.time * (int64_t)sizeof(float)));
  TS_LAUNCH(attend, (unsigned)tasks, (void *)words[0], a, (float *)words[1]);
  return ts_cuda_launched();
}
