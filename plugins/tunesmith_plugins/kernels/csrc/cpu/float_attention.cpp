// A step of attention over a float32 cache. Sums are made in an order that is stated, so that a result depends neither on
// batch, threads nor instruction set. What it costs is reading the cache: while the keys of a head are multiplied its
// values are fetched, and while those are, the keys of the next.
#include "float_attention.h"

#include <math.h>
#include <string.h>

#include <vector>

#include "attention.h"
#include "error.h"
#include "int8_attention.h"
#include "tasks.h"

namespace {

constexpr size_t kKeptFloats = 1 << 20;     // of a thread's work space; more, as for very long texts, is let go again
constexpr double kBytesAMicrosecond = 2e4;  // of one thread, roughly

struct Call {
  TsFloatAttention a;
  const TsAttentionLoops *loops;

  // Copies a head of a new token, turned by its position.
  void turned(const float *from, int64_t token, float *to) const {
    memcpy(to, from, (size_t)a.size * sizeof(float));
    if (!a.cos) return;
    const int64_t at = token % a.tables * a.size;
    for (int64_t i = 0; i < a.size / 2; ++i) ts_turn(to, a.size / 2, i, a.cos + at, a.sin + at);
  }

  // One head of the cache of one row: what is new goes there, and the queries of its heads look at it, all of them at a block of
  // tokens before the next, so that keys and values come from memory once.
  void one(int64_t index) {
    static thread_local std::vector<float> floats;
    static thread_local std::vector<double> doubles;
    const int64_t row = index / a.kv_heads, kv = index % a.kv_heads, size = a.size, time = a.time;
    float *keys = a.keys + row * a.keys_row + kv * a.keys_head, *values = a.values + row * a.values_row + kv * a.values_head;
    if (a.k) write(row, kv, keys, values);
    const int64_t next = index + 1, next_row = next / a.kv_heads, next_kv = next % a.kv_heads;
    const float *after = next < a.batch * a.kv_heads ? a.keys + next_row * a.keys_row + next_kv * a.keys_head : nullptr;

    const int64_t groups = a.heads / a.kv_heads, looks = groups * a.queries;
    floats.resize((size_t)(looks * (size + time) + time));
    doubles.assign((size_t)(looks * (size + 1)), 0);
    float *queries = floats.data(), *weights = queries + looks * size, *space = weights + looks * time;
    double *wide = doubles.data(), *totals = wide + looks * size;
    for (int64_t look = 0; look < looks; ++look) {
      const int64_t head = kv * groups + look / a.queries, n = look % a.queries;
      turned(a.q + row * a.q_row + head * a.q_head + n * a.q_token, row * a.queries + n, queries + look * size);
    }
    for (int64_t from = 0; from < time; from += kTokensABlock) {
      const int64_t length = time - from < kTokensABlock ? time - from : kTokensABlock;
      for (int64_t look = 0; look < looks; ++look)
        loops->float_dots(queries + look * size, keys + from * size, look ? nullptr : values + from * size, length, size, weights + look * time + from);
    }
    for (int64_t look = 0; look < looks; ++look) {
      const int64_t head = kv * groups + look / a.queries, n = look % a.queries;
      totals[look] = weigh(added(row * a.mask_row + head * a.mask_head + n * a.mask_query, space), weights + look * time);
    }
    for (int64_t from = 0; from < time; from += kTokensABlock) {
      const int64_t length = time - from < kTokensABlock ? time - from : kTokensABlock;
      for (int64_t look = 0; look < looks; ++look)
        loops->float_mix(weights + look * time + from, values + from * size, look || !after ? nullptr : after + from * size, length, size, wide + look * size);
    }
    for (int64_t look = 0; look < looks; ++look) {
      const int64_t head = kv * groups + look / a.queries, n = look % a.queries;
      float *out = a.out + ((row * a.queries + n) * a.heads + head) * size;
      const double factor = 1.0 / totals[look];
      for (int64_t d = 0; d < size; ++d) out[d] = totals[look] > 0 ? (float)(wide[look * size + d] * factor) : totals[look] == 0 ? 0.0f : NAN;
    }
    if (floats.capacity() > kKeptFloats) std::vector<float>().swap(floats);
  }

  void write(int64_t row, int64_t kv, float *keys, float *values) const {
    for (int64_t n = 0; n < a.queries; ++n) {
      const int64_t token = row * a.queries + n, place = (a.time - a.queries + n) * a.size;
      turned(a.k + token * a.k_stride + kv * a.size, token, keys + place);
      memcpy(values + place, a.v + token * a.v_stride + kv * a.size, (size_t)a.size * sizeof(float));
    }
  }

  // What a mask adds to the scores, null for nothing; bytes become numbers in `space`.
  const float *added(int64_t at, float *space) const {
    if (a.mask_kind != kSeenMask) return a.mask_kind == kAddedMask ? (const float *)a.mask + at : nullptr;
    const uint8_t *seen = (const uint8_t *)a.mask + at;
    for (int64_t t = 0; t < a.time; ++t) space[t] = seen[t] ? 0.0f : -HUGE_VALF;
    return space;
  }

  // Makes weights of products and returns their sum: 0 of a query that sees no token, as in torch; NaN of one whose scores are not all
  // below infinity.
  double weigh(const float *added, float *weights) const {
    bool known = true;
    const float most = loops->float_scores(added, a.scale, a.time, weights, &known);
    if (!known || !(most < HUGE_VALF)) return NAN;
    double lanes[kAttentionLanes] = {}, total = 0;
    if (most == -HUGE_VALF) return 0;
    loops->weigh(nullptr, most, a.time, weights, lanes);
    for (const double lane : lanes) total += lane;
    return total;
  }
};

}  // namespace

extern "C" int32_t ts_float_attention_words(const int64_t *words, int64_t count) {
  Call call = {{}, ts_attention_loops()};
  if (!call.loops) return TS_UNSUPPORTED;
  const int32_t read = ts_read_float_attention(words, count, ts_fail, &call.a);
  if (read != TS_OK) return read;
  const TsFloatAttention &a = call.a;
  if (a.queries == 0) return TS_OK;
  const int64_t tasks = a.batch * a.kv_heads;
  const bool shared = ts_attention_may_share(tasks, a.queries, a.time, a.size);
  return ts_tasks(shared ? a.threads : 1, tasks, ts_attention_bytes(tasks, a.queries, a.time, a.size) / kBytesAMicrosecond, call, "attention");
}
