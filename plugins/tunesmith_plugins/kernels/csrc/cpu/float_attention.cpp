// A step of attention over a float32 cache. Sums are made in an order that is stated, so that a result depends neither on
// batch, threads nor instruction set. What it costs is reading the cache: while the keys of a head are multiplied its
// values are fetched, and while those are, the keys of the next.
#include "float_attention.h"

#include <math.h>
#include <string.h>

#include <atomic>
#include <vector>

#include "attention.h"
#include "error.h"
#include "int8_attention.h"
#include "pool.h"

namespace {

constexpr double kWorthSharing = 4e6;       // bytes of the cache; less is done by the calling thread
constexpr double kBytesAMicrosecond = 2e4;  // of one thread, roughly

struct Call {
  TsFloatAttention a;
  const TsAttentionLoops *loops;
  std::atomic<int32_t> code{TS_OK};

  // Copies a head of a new token, turned by its position.
  void turned(const float *from, int64_t token, float *to) const {
    memcpy(to, from, (size_t)a.size * sizeof(float));
    if (!a.cos) return;
    const int64_t at = token % a.tables * a.size;
    for (int64_t i = 0; i < a.size / 2; ++i) ts_turn(to, a.size / 2, i, a.cos + at, a.sin + at);
  }

  // One head of the cache of one row: what is new goes there, and the queries of its heads look at it.
  void one(int64_t index) {
    static thread_local std::vector<float> floats;
    static thread_local std::vector<double> wide;
    const int64_t row = index / a.kv_heads, kv = index % a.kv_heads, groups = a.heads / a.kv_heads;
    float *keys = a.keys + row * a.keys_row + kv * a.keys_head, *values = a.values + row * a.values_row + kv * a.values_head;
    if (a.k) {
      for (int64_t n = 0; n < a.queries; ++n) {
        const int64_t token = row * a.queries + n, place = (a.time - a.queries + n) * a.size;
        turned(a.k + token * a.k_stride + kv * a.size, token, keys + place);
        memcpy(values + place, a.v + token * a.v_stride + kv * a.size, (size_t)a.size * sizeof(float));
      }
    }
    const int64_t next = index + 1, next_row = next / a.kv_heads, next_kv = next % a.kv_heads;
    const float *after = next < a.batch * a.kv_heads ? a.keys + next_row * a.keys_row + next_kv * a.keys_head : nullptr;
    floats.resize((size_t)(a.size + 2 * a.time));
    wide.resize((size_t)a.size);
    const int64_t looks = groups * a.queries;
    for (int64_t look = 0; look < looks; ++look) {
      const int64_t head = kv * groups + look / a.queries, n = look % a.queries, token = row * a.queries + n;
      turned(a.q + row * a.q_row + head * a.q_head + n * a.q_token, token, floats.data());
      attend(floats.data(), keys, values, look == 0, look == looks - 1 ? after : nullptr,
             added(row * a.mask_row + head * a.mask_head + n * a.mask_query, floats.data() + a.size + a.time), floats.data() + a.size, wide.data(),
             a.out + (token * a.heads + head) * a.size);
    }
  }

  // What a mask adds to the scores, null for nothing; bytes become numbers in `space`.
  const float *added(int64_t at, float *space) const {
    if (a.mask_kind != kSeenMask) return a.mask_kind == kAddedMask ? (const float *)a.mask + at : nullptr;
    const uint8_t *seen = (const uint8_t *)a.mask + at;
    for (int64_t t = 0; t < a.time; ++t) space[t] = seen[t] ? 0.0f : -HUGE_VALF;
    return space;
  }

  void attend(const float *query, const float *keys, const float *values, bool first, const float *after, const float *added, float *weights,
              double *wide, float *out) const {
    bool known = true;
    loops->float_dots(query, keys, first ? values : nullptr, a.time, a.size, weights);
    const float most = loops->float_scores(added, a.scale, a.time, weights, &known);
    if (!known || !(most < HUGE_VALF) || most == -HUGE_VALF) {  // a query that sees no token gives 0, as in torch
      for (int64_t d = 0; d < a.size; ++d) out[d] = known && most == -HUGE_VALF ? 0.0f : NAN;
      return;
    }
    double lanes[kAttentionLanes] = {}, total = 0;
    loops->weigh(nullptr, most, a.time, weights, lanes);
    for (const double lane : lanes) total += lane;
    for (int64_t d = 0; d < a.size; ++d) wide[d] = 0;
    for (int64_t from = 0; from < a.time; from += kTokensABlock) {
      const int64_t length = a.time - from < kTokensABlock ? a.time - from : kTokensABlock;
      loops->float_mix(weights + from, values + from * a.size, after ? after + from * a.size : nullptr, length, a.size, wide);
    }
    const double factor = 1.0 / total;
    for (int64_t d = 0; d < a.size; ++d) out[d] = (float)(wide[d] * factor);
  }
};

void one_task(void *context, int64_t index) {
  Call &call = *(Call *)context;
  const int32_t code = ts_guard([&call, index]() -> int32_t {
    call.one(index);
    return TS_OK;
  });
  if (code != TS_OK) call.code.store(code, std::memory_order_relaxed);
}

}  // namespace

extern "C" int32_t ts_float_attention_words(const int64_t *words, int64_t count) {
  Call call = {{}, ts_attention_loops()};
  if (!call.loops) return TS_UNSUPPORTED;
  const int32_t read = ts_read_float_attention(words, count, ts_fail, &call.a);
  if (read != TS_OK) return read;
  const TsFloatAttention &a = call.a;
  if (a.queries == 0) return TS_OK;
  const int64_t tasks = a.batch * a.kv_heads;
  const double bytes = (double)tasks * (double)a.time * (double)a.size * 8 * (double)a.queries;
  ts_parallel(bytes > kWorthSharing ? a.threads : 1, tasks, bytes / kBytesAMicrosecond, one_task, &call);
  const int32_t failed = call.code.load(std::memory_order_relaxed);
  return failed == TS_OK ? TS_OK : ts_fail(failed, "a thread ran out of memory, or failed otherwise, in attention");
}
