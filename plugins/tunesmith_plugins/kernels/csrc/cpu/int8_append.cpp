// New keys and values rounded to 8 bits, straight into the store of an int8 cache.
#include "int8_append.h"

#include <string.h>

#include <vector>

#include "error.h"
#include "load.h"

namespace {

void append(const TsAppend &a, int64_t index, float *row) {
  const TsAppendRow at = ts_append_row(a, index);
  const void *given = (const char *)at.states->x + at.from * ts_item_size(a.dtype);
  const float *x = (const float *)given;
  if (a.dtype != TS_F32) {
    ts_load_row(given, a.size, a.dtype, row);
    x = row;
  }
  int32_t most = 0;  // signed: SSE2 compares no others
  for (int64_t i = 0; i < a.size; ++i) {
    const int32_t bits = (int32_t)(float_to_bits(x[i]) & kMagnitude);
    most = bits > most ? bits : most;
  }
  const float scale = ts_state_scale((uint32_t)most);
  int8_t *q = at.states->q + at.to * a.size;
  at.states->scale[at.to] = scale;
  if ((uint32_t)most >= kInfinity) {
    memset(q, 0, (size_t)a.size);
  } else {
    for (int64_t i = 0; i < a.size; ++i) q[i] = ts_state(x[i], scale);
  }
}

}  // namespace

extern "C" int32_t ts_int8_append_words(const int64_t *words, int64_t count) {
  TsAppend a = {};
  const int32_t read = ts_read_append(words, count, ts_fail, &a);
  if (read != TS_OK) return read;
  return ts_guard([&a]() -> int32_t {
    std::vector<float> row(a.dtype == TS_F32 ? 0 : (size_t)a.size);
    for (int64_t index = 0; index < a.rows(); ++index) append(a, index, row.data());
    return TS_OK;
  });
}
