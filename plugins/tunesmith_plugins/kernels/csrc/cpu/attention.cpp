// Attention of a few queries over keys and values in 8 bits, which are read where they are: the query in 12 bits, the
// weights in 15 (value scales in them), integer sums, so that a result depends neither on batch, threads nor
// instruction set.
#include "attention.h"

#include <math.h>
#include <string.h>

#include <atomic>
#include <vector>

#include "error.h"
#include "int8_math.h"
#include "pool.h"

namespace {

constexpr float kLargestWeight = 32767.0f;
constexpr double kWorthSharing = 2e6;  // bytes of the cache; less is done by the calling thread

struct Call {
  const float *q;
  float *out;
  int64_t batch, heads, queries, kv_heads, time, size;
  const int8_t *k;
  const float *k_scale;
  const int8_t *v;
  const float *v_scale;
  const float *mask;
  int64_t mask_batch, mask_head, mask_query;
  float scale;
  const TsAttentionLoops *loops;
  std::atomic<int32_t> code{TS_OK};

  void one(int64_t index) {
    static thread_local std::vector<int16_t> small;
    static thread_local std::vector<int32_t> integers;
    static thread_local std::vector<float> floats;
    static thread_local std::vector<int64_t> wide;
    small.resize((size_t)(size + time));
    integers.resize((size_t)(time > size ? time : size));
    floats.resize((size_t)time);
    wide.assign((size_t)size, 0);
    const int64_t query = index % queries, head = index / queries % heads, row = index / queries / heads;
    const int64_t kv = row * kv_heads + head / (heads / kv_heads);
    const float *x = q + index * size, *key_scale = k_scale + kv * time, *value_scale = v_scale + kv * time;
    const float *added = mask ? mask + row * mask_batch + head * mask_head + query * mask_query : nullptr;
    float *y = out + index * size, *weights = floats.data();
    int16_t *rounded = small.data() + size;

    float low = 0, high = 0;
    bool finite = true;
    for (int64_t d = 0; d < size; ++d) {
      finite &= (float_to_bits(x[d]) & 0x7f800000u) != 0x7f800000u;
      low = x[d] < low ? x[d] : low;
      high = x[d] > high ? x[d] : high;
    }
    const float x_scale = ts_row_scale_12(low, high), inverse = 1.0f / x_scale;
    for (int64_t d = 0; d < size; ++d) small[(size_t)d] = finite ? (int16_t)(ts_quantize_12(x[d], inverse) - 2048) : 0;
    loops->dots(small.data(), k + kv * time * size, time, size, integers.data());
    float most = -HUGE_VALF;
    for (int64_t t = 0; t < time; ++t) {
      float score = (float)integers[(size_t)t] * (x_scale * key_scale[t]) * scale;
      if (added) score = score + added[t];
      weights[t] = score;
      finite &= score == score;
      most = score > most ? score : most;
    }
    if (finite && most == -HUGE_VALF) {  // sees no token, as padding in front does: 0, as torch's attention
      for (int64_t d = 0; d < size; ++d) y[d] = 0;
      return;
    }
    if (!finite || !(most < HUGE_VALF)) {
      for (int64_t d = 0; d < size; ++d) y[d] = NAN;
      return;
    }
    double lanes[8] = {}, total = 0;
    float largest = 0;
    for (int64_t t = 0; t < time; ++t) {
      const float e = weights[t] > -HUGE_VALF ? ts_exp_float(weights[t] - most) : 0.0f;
      lanes[t % 8] += (double)e;
      weights[t] = e * value_scale[t];
      largest = weights[t] > largest ? weights[t] : largest;
    }
    for (const double lane : lanes) total += lane;
    float step = largest / kLargestWeight;
    if (step < kSmallestScale) step = kSmallestScale;
    const float by = 1.0f / step;
    for (int64_t t = 0; t < time; ++t) {
      const int32_t p = ts_round_float(weights[t] * by);
      rounded[t] = (int16_t)(p > 32767 ? 32767 : p);
    }
    for (int64_t from = 0; from < time; from += kTokensAtOnce) {
      const int64_t length = time - from < kTokensAtOnce ? time - from : kTokensAtOnce;
      loops->mix(rounded + from, v + (kv * time + from) * size, length, size, integers.data());
      for (int64_t d = 0; d < size; ++d) wide[(size_t)d] += integers[(size_t)d];
    }
    const double factor = (double)step / total;
    for (int64_t d = 0; d < size; ++d) y[d] = (float)((double)wide[(size_t)d] * factor);
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

const TsAttentionLoops *loops() {
  const char *isa = ts_isa_current();
  if (!isa) return nullptr;
#if defined(TS_HAVE_AVX2)
  if (strcmp(isa, "scalar") != 0) return &ts_attention_avx2;
#endif
  return &ts_attention_plain;
}

}  // namespace

extern "C" int32_t ts_int8_attention_words(const int64_t *words, int64_t count) {
  if (!words || count != 18) return ts_fail(TS_INVALID, "attention takes 18 words, not %lld", (long long)count);
  double scale;
  memcpy(&scale, words + 16, sizeof scale);
  Call call = {(const float *)words[0], (float *)words[1], words[2], words[3], words[4], words[5], words[6], words[7],
               (const int8_t *)words[8], (const float *)words[9], (const int8_t *)words[10], (const float *)words[11],
               (const float *)words[12], words[13], words[14], words[15], (float)scale, loops()};
  if (!call.loops) return TS_UNSUPPORTED;
  if (call.batch < 0 || call.heads < 0 || call.queries < 0 || call.kv_heads < 1 || call.heads % call.kv_heads || call.time < 1 || call.size < 1 || call.size > TS_MAX_K_12)
    return ts_fail(TS_INVALID, "attention needs whole groups of heads, at least one token and heads of 1 to %d values", TS_MAX_K_12);
  const int64_t tasks = call.batch * call.heads * call.queries;
  if (tasks && (!call.q || !call.out || !call.k || !call.k_scale || !call.v || !call.v_scale)) return ts_fail(TS_INVALID, "attention needs q, k, v, their scales and out");
  const bool share = (double)tasks * (double)call.time * (double)call.size * 2 > kWorthSharing;
  ts_parallel(share && words[17] > 0 ? (int32_t)words[17] : 1, tasks, one_task, &call);
  const int32_t failed = call.code.load(std::memory_order_relaxed);
  return failed == TS_OK ? TS_OK : ts_fail(failed, "a thread ran out of memory, or failed otherwise, in attention");
}
