// Where a running sum of weights, in ascending order of values, goes beyond a limit, for the few values that a top-k has
// left. Their order is nothing a processor can predict, so they are added up again and again rather than sorted.
#pragma once

#include <float.h>
#include <math.h>
#include <stdint.h>

#include "warm.h"

constexpr int64_t kShortList = 128;

// What ts_boundary finds, of 1 to kShortList values, the largest of which is max; the sum of all weights must exceed the limit.
[[maybe_unused]] TS_WARM_LISTS static float ts_short_boundary(const float *z, const uint64_t *w, int64_t n, float max, uint64_t limit,
                                      uint64_t *before) {
  constexpr int kHalvings = 5, kSide = 4;  // then few values are left in between
  float lows[kSide] = {max, max, max, max}, low = max;
  int64_t left = 0;
  for (; left + kSide <= n; left += kSide) {
    for (int j = 0; j < kSide; ++j) lows[j] = z[left + j] < lows[j] ? z[left + j] : lows[j];
  }
  for (; left < n; ++left) low = z[left] < low ? z[left] : low;
  for (const float each : lows) low = each < low ? each : low;
  low = low < -FLT_MAX ? -FLT_MAX : low;  // what is infinitely low weighs nothing
  float ends[2] = {low, HUGE_VALF};  // the boundary is at least ends[0] and less than ends[1] ...
  uint64_t under[2] = {0, 0};        // ... and so much weighs what is less than each
  float width = max - low;
  for (int step = 0; step < kHalvings; ++step) {
    width *= 0.5f;
    const float middle = ends[0] + width;
    uint64_t sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += w[i] & (0 - (uint64_t)(z[i] < middle));
    const bool beyond = sum > limit;
    ends[beyond] = middle;
    under[beyond] = sum;
  }
  float some[kShortList];
  uint64_t weights[kShortList], running = under[0];
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    some[count] = z[i];
    weights[count] = w[i];
    count += (z[i] >= ends[0]) & (z[i] < ends[1]);
  }
  for (float least = ends[0];;) {
    float next = HUGE_VALF, after = HUGE_VALF;
    for (int64_t i = 0; i < count; ++i) next = ((some[i] >= least) & (some[i] < next)) ? some[i] : next;
    uint64_t same = 0;
    for (int64_t i = 0; i < count; ++i) {
      same += weights[i] & (0 - (uint64_t)(some[i] == next));
      after = ((some[i] > next) & (some[i] < after)) ? some[i] : after;
    }
    if (running + same > limit) {
      *before = running;
      return next;
    }
    running += same;
    least = after;
  }
}
