// The watermark: a part of the vocabulary that depends on the ids before is made likelier.
#pragma once

#include "green.h"
#include "sampling_row.h"

namespace {

// ids: the key, and how many of the `length` ids before decide.
__device__ TS_NOINLINE inline void watermark(const Row &row, const Row &processed, const int64_t *ids, const int64_t *history, int64_t length,
                                 double gamma, float delta) {
  const int64_t key = ids[0], context = ids[1];
  if (length < context) return;
  const uint64_t stream = ts_watermark_stream(key, history + length - context, context), bound = ts_green_bound(gamma);
  const auto raised = [&](int i, float value) { return ts_is_green(key, stream, bound, i) ? value + delta : value; };
  row.change(raised);
  if (processed.z) processed.change(raised);
}

}  // namespace
