// Attention of a few queries over keys and values in 8 bits, which are read where they are: the query in 12 bits, the
// weights in 15 (value scales in them), integer sums, so that a result depends neither on batch, threads nor
// instruction set.
#include "attention.h"

#include <math.h>
#include <string.h>

#include <vector>

#include "error.h"
#include "int8_attention.h"
#include "tasks.h"

namespace {

constexpr double kWorthSharing = 2e6;       // bytes of the cache; less is done by the calling thread
constexpr double kBytesAMicrosecond = 2e4;  // of one thread, roughly

// Scales that are not finite stand for rows that were not. A loop of its own, which compilers turn into vectors.
bool all_finite(const float *scales, int64_t count) {
  int32_t bad = 0;
  for (int64_t i = 0; i < count; ++i) bad |= !ts_finite(scales[i]);
  return !bad;
}

struct Call {
  TsAttention a;
  const TsAttentionLoops *loops;

  void one(int64_t index) {
    static thread_local std::vector<int16_t> small;
    static thread_local std::vector<int32_t> integers;
    static thread_local std::vector<float> floats;
    static thread_local std::vector<int64_t> wide;
    const int64_t size = a.size, time = a.time;
    small.resize((size_t)(size + time));
    integers.resize((size_t)(time > size ? time : size));
    floats.resize((size_t)time);
    wide.assign((size_t)size, 0);
    const TsAttentionQuery at = ts_attention_query(a, index);
    const float *x = at.x;
    float *y = at.out, *weights = floats.data();
    int16_t *rounded = small.data() + size;

    float low = 0, high = 0;
    bool finite = all_finite(at.k_scale, time) && all_finite(at.v_scale, time);
    for (int64_t d = 0; d < size; ++d) {
      finite &= ts_finite(x[d]);
      low = x[d] < low ? x[d] : low;
      high = x[d] > high ? x[d] : high;
    }
    const float x_scale = ts_row_scale_12(low, high), inverse = 1.0f / x_scale;
    for (int64_t d = 0; d < size; ++d) small[(size_t)d] = finite ? ts_query_12(x[d], inverse) : 0;
    loops->dots(small.data(), at.k, time, size, integers.data());
    const float most = loops->scores(integers.data(), at.k_scale, at.added, x_scale, a.scale, time, weights, &finite);
    if (finite && most == -HUGE_VALF) {  // sees no token, as padding in front does: 0, as torch's attention
      for (int64_t d = 0; d < size; ++d) y[d] = 0;
      return;
    }
    if (!finite || !(most < HUGE_VALF)) {
      for (int64_t d = 0; d < size; ++d) y[d] = NAN;
      return;
    }
    double lanes[kAttentionLanes] = {}, total = 0;
    const float largest = loops->weigh(at.v_scale, most, time, weights, lanes);
    for (const double lane : lanes) total += lane;
    const float step = ts_weight_step(largest);
    loops->round(weights, 1.0f / step, time, rounded);
    for (int64_t from = 0; from < time; from += kTokensAtOnce) {
      const int64_t length = time - from < kTokensAtOnce ? time - from : kTokensAtOnce;
      loops->mix(rounded + from, at.v + from * size, length, size, integers.data());
      for (int64_t d = 0; d < size; ++d) wide[(size_t)d] += integers[(size_t)d];
    }
    const double factor = (double)step / total;
    for (int64_t d = 0; d < size; ++d) y[d] = (float)((double)wide[(size_t)d] * factor);
  }
};

}  // namespace

const TsAttentionLoops *ts_attention_loops() {
  const char *isa = ts_isa_current();
  if (!isa) return nullptr;
#if defined(TS_HAVE_AVX2)
  if (strcmp(isa, "scalar") != 0) return &ts_attention_avx2;
#endif
  return &ts_attention_plain;
}

extern "C" int32_t ts_int8_attention_words(const int64_t *words, int64_t count) {
  Call call = {{}, ts_attention_loops()};
  if (!call.loops) return TS_UNSUPPORTED;
  const int32_t read = ts_read_attention(words, count, ts_fail, &call.a);
  if (read != TS_OK) return read;
  const TsAttention &a = call.a;
  const int64_t tasks = a.batch * a.heads * a.queries;
  const double bytes = (double)tasks * (double)a.time * (double)a.size * 2;
  const bool share = bytes > kWorthSharing;
  return ts_tasks(share && words[17] > 0 ? (int32_t)words[17] : 1, tasks, bytes / kBytesAMicrosecond, call, "attention");
}
