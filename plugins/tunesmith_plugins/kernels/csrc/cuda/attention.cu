// Attention over an int8 cache on a CUDA device: the arithmetic of int8_attention.h, with the CPU's bits. The tokens are shared
// out among blocks, and up to four queries that look at the same head of the cache share a block, which reads keys and values
// once for all of them. Three kernels: scores; exponentials; sums, whose last block writes the results.
#include "int8_attention.h"

#include "int8_warp.h"

namespace {

constexpr int kQueries = 4;           // a block: each is two rows of bytes, and mma takes eight
constexpr int kFewTokens = 64;        // a block's part of the tokens: this, or double, up to kTokensAtOnce, whose sums fit int32
constexpr int kManyBlocks = 384;      // more blocks than this would not be at work together
constexpr int kRun = 2 * kThreads;    // tokens a block of the second kernel
constexpr int kTokens = 16;           // a warp multiplies at a time
constexpr int kValues = 8;            // channels a thread of the third kernel
constexpr int kNarrow = 1984;         // heads that are wider have one query a block: its shared memory holds no more
constexpr int kQueryBytes = 2 * (TS_MAX_K_12 + 64);
constexpr uint32_t kBad = ~0u;        // above the key of every score
constexpr int kTile = 512, kTileRow = kTile + 8;  // exponentials that lie in shared memory to be added up in order

struct Plan {
  TsAttention a;
  int kv_heads, rows, at_once, chunks, parts, part, runs;  // rows: queries of a head of the cache, at_once of them a block
  unsigned groups;                                         // of queries that share a block: chunks for each head of the cache
  int64_t *sums;                                           // (task, size)
  double *totals;                                          // (task)
  float *numbers;                                          // (task, time): scores, then exponentials
  uint32_t *most, *largest;                                // (task, part) keys of scores, (task, run) bits of weights
  float *state;                                            // (task): the largest score; NaN or -inf: the result is NaN or 0
  uint32_t *arrived;                                       // (group)
};

int64_t bytes_needed(const TsAttention &a) {
  const int64_t each = 8 * a.size + 4 * a.time + 8 * ((a.time + kFewTokens - 1) / kFewTokens) + 24;
  return a.batch * a.heads * a.queries * each;
}

Plan plan_of(const TsAttention &a, void *space) {
  Plan p = {};
  p.a = a;
  p.kv_heads = (int)a.kv_heads;
  p.rows = (int)(a.heads / a.kv_heads * a.queries);
  p.at_once = a.size > kNarrow ? 1 : kQueries;
  p.chunks = (p.rows + p.at_once - 1) / p.at_once;
  p.groups = (unsigned)(a.batch * a.kv_heads * p.chunks);
  p.part = kFewTokens;
  while (p.part < kTokensAtOnce && (int64_t)p.groups * ((a.time + p.part - 1) / p.part) > kManyBlocks) p.part *= 2;
  p.parts = (int)((a.time + p.part - 1) / p.part);
  p.runs = (int)((a.time + kRun - 1) / kRun);
  const int64_t tasks = a.batch * a.heads * a.queries;
  p.sums = (int64_t *)space;
  p.totals = (double *)(p.sums + tasks * a.size);
  p.numbers = (float *)(p.totals + tasks);
  p.most = (uint32_t *)(p.numbers + tasks * a.time);
  p.largest = p.most + tasks * p.parts;
  p.state = (float *)(p.largest + tasks * p.runs);
  p.arrived = (uint32_t *)(p.state + tasks);
  return p;
}

// The queries of a block: `count` tasks from `first`, which look at head `kv` of the cache (of all batches' heads).
struct Group {
  int64_t first, kv;
  int count;

  __device__ Group(const Plan &p, unsigned group) {
    const unsigned chunk = group % (unsigned)p.chunks;
    const int before = (int)chunk * p.at_once, left = p.rows - before;
    kv = group / (unsigned)p.chunks;
    first = kv * p.rows + before;
    count = left < p.at_once ? left : p.at_once;
  }
};

// Bytes [at, at + 4 kWords) of a row, zeros beyond its end; kWhole: the row can be read so many at a time.
template <int kWords, bool kWhole>
__device__ void fetch(uint32_t (&words)[kWords], const int8_t *row, int64_t at, int64_t size, bool there) {
  for (int i = 0; i < kWords; ++i) words[i] = 0;
  if (!there || at >= size) return;
  if (kWhole && kWords == 4) {
    const uint4 found = *(const uint4 *)(row + at);
    words[0] = found.x, words[1] = found.y, words[kWords - 2] = found.z, words[kWords - 1] = found.w;
  } else if (kWhole) {
    const uint2 found = *(const uint2 *)(row + at);
    words[0] = found.x, words[1] = found.y;
  } else {
    for (int i = 0; i < 4 * kWords; ++i)
      if (at + i < size) words[i / 4] |= (uint32_t)(uint8_t)row[at + i] << (i % 4 * 8);
  }
}

// A warp's query in 12 bits: q = 64 * upper + lower, in two rows of bytes. Its scale is NaN if it is not finite.
__device__ float quantise(const float *x, int64_t size, int8_t *upper, int64_t stride) {
  const int lane = (int)threadIdx.x % 32;
  uint32_t most = 0;
  for (int64_t d = lane; d < size; d += 32) {
    const uint32_t magnitude = float_to_bits(x[d]) & 0x7fffffffu;
    most = magnitude > most ? magnitude : most;
  }
  most = __reduce_max_sync(~0u, most);
  const bool finite = most < 0x7f800000u;
  const float scale = ts_row_scale_12(0, finite ? bits_to_float(most) : 0), inverse = 1.0f / scale;
  for (int64_t d = lane; d < stride; d += 32) {
    const int q = finite && d < size ? ts_query_12(x[d], inverse) : 0;
    upper[d] = (int8_t)(q >> 6);
    upper[stride + d] = (int8_t)(q & 63);
  }
  return finite ? scale : bits_to_float(0x7fc00000u);
}

// What the mask adds to the scores of a task, or null.
__device__ const float *added(const Plan &p, int64_t task) {
  if (!p.a.mask) return nullptr;
  const uint32_t queries = (uint32_t)p.a.queries, of_row = (uint32_t)p.a.heads * queries, row = (uint32_t)task / of_row, left = (uint32_t)task % of_row;
  return p.a.mask + row * p.a.mask_batch + left / queries * p.a.mask_head + left % queries * p.a.mask_query;
}

template <bool kWhole>
__global__ void scores(Plan p) {
  alignas(16) __shared__ int8_t q[kQueryBytes];
  __shared__ float x_scales[kQueries];
  __shared__ uint32_t found[kWarps][kQueries];
  const TsAttention &a = p.a;
  const int part = (int)(blockIdx.x % (unsigned)p.parts), warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
  const unsigned index = blockIdx.x / (unsigned)p.parts;
  const Group group(p, index);
  if (part == 0) {  // for the third kernel
    for (int64_t at = threadIdx.x; at < group.count * a.size; at += kThreads) p.sums[group.first * a.size + at] = 0;
    if (threadIdx.x == 0) p.arrived[index] = 0;
  }
  const int64_t stride = (a.size + 63) / 64 * 64 | 64;  // rows of the query begin in different banks
  for (int j = warp; j < group.count; j += kWarps) {
    const float scale = quantise(a.q + (group.first + j) * a.size, a.size, q + 2 * j * stride, stride);
    if (lane == 0) x_scales[j] = scale;
  }
  __syncthreads();

  const int64_t begin = (int64_t)part * p.part, left = a.time - begin, place = group.kv * a.room + begin;
  const int tokens = left < p.part ? (int)left : p.part, row = lane / 4, j = lane % 4;
  const float *k_scale = a.k_scale + place, *v_scale = a.v_scale + place;
  const bool mine = j < group.count;
  const float x_scale = mine ? x_scales[j] : 0;
  const float *mask = mine ? added(p, group.first + j) : nullptr;
  float *numbers = p.numbers + (group.first + j) * a.time + begin;
  uint32_t most = 0;
  for (int at = warp * kTokens; at < tokens; at += kWarps * kTokens) {
    const int8_t *keys = a.k + (place + at + row) * a.size;
    const bool upper_there = at + row < tokens, lower_there = at + row + 8 < tokens;
    int32_t c[4] = {};
    TS_UNROLL(4)
    for (int64_t d = j * 16; d < a.size + j * 16; d += 64) {  // all lanes as often
      uint32_t upper[4], lower[4];
      fetch<4, kWhole>(upper, keys, d, a.size, upper_there);
      fetch<4, kWhole>(lower, keys + 8 * a.size, d, a.size, lower_there);
      const uint4 nothing = {0, 0, 0, 0}, x = row < 2 * group.count ? *(const uint4 *)(q + row * stride + d) : nothing;
      mma_m16n8k32(c, upper[0], lower[0], upper[1], lower[1], x.x, x.y);
      mma_m16n8k32(c, upper[2], lower[2], upper[3], lower[3], x.z, x.w);
    }
    for (int i = 0; i < 2; ++i) {
      const int t = at + row + 8 * i;
      if (!mine || t >= tokens) continue;
      const int32_t dot = (int32_t)(64u * (uint32_t)c[2 * i] + (uint32_t)c[2 * i + 1]);
      const float score = ts_score(dot, x_scale, k_scale[t], a.scale, mask, begin + t);
      const bool bad = score != score || !ts_finite(k_scale[t]) || !ts_finite(v_scale[t]);  // of rows that were not finite
      const uint32_t key = bad ? kBad : ts_order_key(score);
      numbers[t] = score;
      most = key > most ? key : most;
    }
  }
  for (int lanes = 4; lanes < 32; lanes *= 2) {
    const uint32_t other = __shfl_xor_sync(~0u, most, lanes);
    most = other > most ? other : most;
  }
  if (lane < kQueries) found[warp][lane] = most;
  __syncthreads();
  if ((int)threadIdx.x < group.count) {
    for (int other = 0; other < kWarps; ++other) most = found[other][threadIdx.x] > most ? found[other][threadIdx.x] : most;
    p.most[(group.first + threadIdx.x) * p.parts + part] = most;
  }
}

__global__ void exponentials(Plan p) {
  const TsAttention &a = p.a;
  const int64_t task = blockIdx.x / (unsigned)p.runs, begin = (int64_t)(blockIdx.x % (unsigned)p.runs) * kRun;
  uint32_t key = 0;
  for (int i = (int)threadIdx.x; i < p.parts; i += kThreads) {
    const uint32_t other = p.most[task * p.parts + i];
    key = other > key ? other : key;
  }
  key = block_most(key);
  const float infinity = bits_to_float(0x7f800000u);
  float most = key == kBad ? infinity : key_to_float(key);
  if (most == infinity) most = bits_to_float(0x7fc00000u);
  if (begin == 0 && threadIdx.x == 0) p.state[task] = most;
  if (!ts_finite(most)) return;
  const float *v_scale = a.v_scale + task / p.rows * a.room;
  float *numbers = p.numbers + task * a.time, largest = 0;
  for (int64_t t = begin + (int)threadIdx.x; t < a.time && t < begin + kRun; t += kThreads) {
    const float e = ts_attention_exp(numbers[t], most), weight = e * v_scale[t];
    numbers[t] = e;
    largest = weight > largest ? weight : largest;
  }
  const uint32_t bits = block_most(float_to_bits(largest));  // of numbers from 0 on these are in order
  if (threadIdx.x == 0) p.largest[task * p.runs + begin / kRun] = bits;
}

union Room {
  int32_t sums[kQueries * kValues][kThreads + 4];  // of every thread; a column of queries and channels lies in different banks
  float tiles[2][kQueries][kTileRow];
};

// The totals of a group: eight lanes a query, each in the order of the tokens, while the other warps fetch what comes next.
__device__ void add_up(const Plan &p, const Group &group, float (&tiles)[2][kQueries][kTileRow]) {
  __shared__ double lanes[kQueries][kAttentionLanes];
  const int thread = (int)threadIdx.x, j = thread / kAttentionLanes;
  const float *numbers = p.numbers + group.first * p.a.time;
  double sum = 0;
  for (int64_t begin = -kTile; begin < p.a.time; begin += kTile) {
    const int now = (int)(begin / kTile & 1);
    if (thread >= 32) {
      for (int at = thread - 32; at < group.count * kTile; at += kThreads - 32) {
        const int64_t t = begin + kTile + at % kTile;
        if (t < p.a.time) tiles[!now][at / kTile][at % kTile] = numbers[at / kTile * p.a.time + t];
      }
    } else if (begin >= 0 && j < group.count) {
      const int64_t left = p.a.time - begin;
      const int count = left < kTile ? (int)left : kTile;
      TS_UNROLL(8)
      for (int t = thread % kAttentionLanes; t < count; t += kAttentionLanes) sum += (double)tiles[now][j][t];
    }
    __syncthreads();
  }
  if (thread < 32) lanes[j][thread % kAttentionLanes] = sum;
  __syncthreads();
  if (thread < group.count) {
    double total = 0;
    for (int lane = 0; lane < kAttentionLanes; ++lane) total += lanes[thread][lane];
    p.totals[group.first + thread] = total;
  }
}

// Adds the products of a part of the tokens to p.sums. A thread takes eight channels of two tokens at a time.
template <bool kWhole>
__device__ void mix(const Plan &p, const Group &group, int part, const float *steps, const float *states, int32_t (&sums)[kQueries * kValues][kThreads + 4]) {
  __shared__ int32_t weights[kQueries][kTokensAtOnce / 2];  // of two tokens each
  const TsAttention &a = p.a;
  const int64_t begin = (int64_t)part * p.part, left = a.time - begin, place = group.kv * a.room + begin;
  const int tokens = left < p.part ? (int)left : p.part, thread = (int)threadIdx.x;
  for (int at = thread; at < kQueries * p.part / 2; at += kThreads) {
    const int j = at / (p.part / 2), pair = at % (p.part / 2);
    uint32_t both = 0;
    for (int t = 2 * pair; j < group.count && ts_finite(states[j]) && t < 2 * pair + 2 && t < tokens; ++t) {
      const float weight = p.numbers[(group.first + j) * a.time + begin + t] * a.v_scale[place + t];
      both |= (uint32_t)(uint16_t)ts_weight_15(weight, 1.0f / steps[j]) << (t % 2 * 16);
    }
    weights[j][pair] = (int32_t)both;
  }
  __syncthreads();
  const int wide = (int)((a.size + kValues - 1) / kValues), columns = wide < kThreads ? wide : kThreads, slots = kThreads / columns;
  const int column = thread % columns, slot = thread / columns, pairs = (tokens + 1) / 2;
  for (int64_t from = 0; from < a.size; from += (int64_t)columns * kValues) {
    const int64_t d = from + column * kValues;
    const int8_t *values = a.v + place * a.size;
    int32_t own[kQueries * kValues] = {};
    TS_UNROLL(2)
    for (int pair = slot; pair < pairs; pair += slots) {
      uint32_t one[2], two[2];
      fetch<2, kWhole>(one, values + 2 * pair * a.size, d, a.size, slot < slots);
      fetch<2, kWhole>(two, values + (2 * pair + 1) * a.size, d, a.size, slot < slots && 2 * pair + 1 < tokens);
      TS_UNROLL(2)
      for (int i = 0; i < 2; ++i) {
        const int32_t front = (int32_t)__byte_perm(one[i], two[i], 0x5140), back = (int32_t)__byte_perm(one[i], two[i], 0x7362);
        TS_UNROLL(4)
        for (int j = 0; j < kQueries; ++j) {
          const int32_t both = weights[j][pair];
          int32_t *four = own + j * kValues + 4 * i;
          four[0] = __dp2a_lo(both, front, four[0]);
          four[1] = __dp2a_hi(both, front, four[1]);
          four[2] = __dp2a_lo(both, back, four[2]);
          four[3] = __dp2a_hi(both, back, four[3]);
        }
      }
    }
    TS_UNROLL(32)
    for (int i = 0; i < kQueries * kValues; ++i) sums[i][thread] = own[i];
    __syncthreads();
    const int64_t rest = a.size - from;
    const int width = rest < columns * kValues ? (int)rest : columns * kValues;
    for (int at = thread; at < group.count * width; at += kThreads) {
      const int j = at / width, i = at % width;
      int32_t sum = 0;
      for (int other = 0; other < slots; ++other) sum += sums[j * kValues + i % kValues][other * columns + i / kValues];
      atomicAdd((unsigned long long *)&p.sums[(group.first + j) * a.size + from + i], (unsigned long long)(int64_t)sum);
    }
    __syncthreads();
  }
}

// Whoever of a group's blocks comes last writes its results.
template <bool kWhole>
__global__ void mixed(Plan p) {
  __shared__ Room room;
  __shared__ float steps[kQueries], states[kQueries];
  __shared__ bool last;
  const TsAttention &a = p.a;
  const bool adds = blockIdx.x < p.groups;  // first, since that takes longest
  const unsigned rest = adds ? 0 : blockIdx.x - p.groups, index = adds ? (unsigned)blockIdx.x : rest / (unsigned)p.parts;
  const Group group(p, index);
  for (int j = (int)threadIdx.x / 32; j < group.count; j += kWarps) {
    const int lane = (int)threadIdx.x % 32;
    const int64_t task = group.first + j;
    const float state = p.state[task];
    uint32_t largest = 0;
    for (int run = lane; ts_finite(state) && run < p.runs; run += 32) {
      const uint32_t bits = p.largest[task * p.runs + run];
      largest = bits > largest ? bits : largest;
    }
    largest = __reduce_max_sync(~0u, largest);
    if (lane == 0) steps[j] = ts_weight_step(bits_to_float(largest)), states[j] = state;
  }
  __syncthreads();
  if (adds) add_up(p, group, room.tiles);
  else mix<kWhole>(p, group, (int)(rest % (unsigned)p.parts), steps, states, room.sums);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd((int32_t *)&p.arrived[index], 1) == p.parts;
  __syncthreads();
  if (!last) return;
  __threadfence();
  for (int64_t at = threadIdx.x; at < group.count * a.size; at += kThreads) {
    const int j = (int)((uint32_t)at / (uint32_t)a.size);
    const int64_t place = group.first * a.size + at;
    const float state = states[j];
    float y = state == state ? 0 : state;
    if (ts_finite(state)) y = (float)((double)__ldcg((const long long *)&p.sums[place]) * ((double)steps[j] / __ldcg(&p.totals[group.first + j])));
    a.out[place] = y;
  }
}

}  // namespace

extern "C" int32_t ts_cuda_int8_attention_words(const int64_t *words, int64_t count) {
  if (!words || count < 3) return ts_cuda_fail(TS_INVALID, "attention needs a stream, work space and its words");
  TsAttention a = {};
  int32_t code = ts_read_attention(words + 3, count - 3, ts_cuda_fail, &a);
  if (code != TS_OK) return code;
  const int64_t tasks = a.batch * a.heads * a.queries, needed = bytes_needed(a);
  if (tasks == 0) return TS_OK;
  if (a.time > INT32_MAX || tasks > INT32_MAX / ((a.time + kFewTokens - 1) / kFewTokens + 1))
    return ts_cuda_fail(TS_INVALID, "%lld queries of %lld tokens are too many for one call", (long long)tasks, (long long)a.time);
  if (!words[1] || words[1] % 8 || words[2] < needed)
    return ts_cuda_fail(TS_INVALID, "attention needs %lld bytes of work space, aligned to 8", (long long)needed);
  const Plan p = plan_of(a, (void *)words[1]);
  void *stream = (void *)words[0];
  if (a.size % 16 == 0 && (uintptr_t)a.k % 16 == 0) TS_LAUNCH(scores<true>, p.groups * (unsigned)p.parts, stream, p);
  else TS_LAUNCH(scores<false>, p.groups * (unsigned)p.parts, stream, p);
  TS_LAUNCH(exponentials, (unsigned)(tasks * p.runs), stream, p);
  if (a.size % kValues == 0 && (uintptr_t)a.v % kValues == 0) TS_LAUNCH(mixed<true>, p.groups * (unsigned)(p.parts + 1), stream, p);
  else TS_LAUNCH(mixed<false>, p.groups * (unsigned)(p.parts + 1), stream, p);
  return ts_cuda_launched();
}
