// Where a running sum of weights, in ascending order of values, goes beyond a limit.
#pragma once

#include <math.h>

#include <algorithm>

#include "scratch.h"
#include "warm.h"

struct Weighed {
  float z;
  uint64_t w;
};

// A span of values in 256 equal steps; false if all are equal, or too far apart for a difference.
struct Steps {
  static constexpr int kCount = 256;
  float low, scale;
  bool between(float least, float most) {
    low = least;
    scale = (float)(kCount - 1) / (most - least);
    return scale > 0 && scale < HUGE_VALF;
  }
  int of(float z) const { return (int)((z - low) * scale) & (kCount - 1); }
};

// Finds the smallest z at which `running` plus the weights of everything up to and including z exceeds limit; *before
// is the sum without the weights at z itself. items is reordered. The sum over all items must exceed the limit.
// Distributes over 256 equal steps of z, and goes on in the step where it happens.
[[maybe_unused]] TS_WARM_TOP_P static float ts_boundary(Weighed *items, int64_t n, uint64_t running, uint64_t limit, uint64_t *before) {
  constexpr int kFew = 24;
  while (n > kFew) {
    float low = items[0].z, high = items[0].z;
    for (int64_t i = 1; i < n; ++i) {
      low = items[i].z < low ? items[i].z : low;
      high = items[i].z > high ? items[i].z : high;
    }
    Steps steps;
    if (!steps.between(low, high)) break;
    uint64_t sums[Steps::kCount] = {0};
    for (int64_t i = 0; i < n; ++i) sums[steps.of(items[i].z)] += items[i].w;
    int here = 0;
    while (running + sums[here] <= limit) running += sums[here++];
    int64_t left = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (steps.of(items[i].z) == here) items[left++] = items[i];
    }
    n = left;
  }
  std::sort(items, items + n, [](const Weighed &a, const Weighed &b) { return a.z < b.z; });
  for (int64_t i = 0;;) {
    uint64_t same = 0;
    int64_t end = i;
    while (end < n && items[end].z == items[i].z) same += items[end++].w;
    if (running + same > limit) {
      *before = running;
      return items[i].z;
    }
    running += same;
    i = end;
  }
}

// The same of values and weights that stay as they are; `items` is room for n of them, of which few are touched.
[[maybe_unused]] TS_WARM_TOP_P static float ts_boundary(const float *z, const uint64_t *w, int64_t n, Weighed *items, uint64_t running, uint64_t limit,
                         uint64_t *before) {
  constexpr int kSide = 16;  // side by side, since one comparison waits for the one before
  float lows[kSide], highs[kSide];
  for (int j = 0; j < kSide; ++j) lows[j] = highs[j] = z[0];
  for (int64_t i = 0; i + kSide <= n; i += kSide) {
    for (int j = 0; j < kSide; ++j) {
      lows[j] = z[i + j] < lows[j] ? z[i + j] : lows[j];
      highs[j] = z[i + j] > highs[j] ? z[i + j] : highs[j];
    }
  }
  float low = z[n - 1], high = z[n - 1];
  for (int64_t i = n - n % kSide; i < n; ++i) {
    low = z[i] < low ? z[i] : low;
    high = z[i] > high ? z[i] : high;
  }
  for (int j = 0; j < kSide; ++j) {
    low = lows[j] < low ? lows[j] : low;
    high = highs[j] > high ? highs[j] : high;
  }
  Steps steps;
  if (n < 256 || !steps.between(low, high)) {
    for (int64_t i = 0; i < n; ++i) items[i] = {z[i], w[i]};
    return ts_boundary(items, n, running, limit, before);
  }
  uint64_t sums[Steps::kCount] = {0};
  for (int64_t i = 0; i < n; ++i) sums[steps.of(z[i])] += w[i];
  int here = 0;
  while (running + sums[here] <= limit) running += sums[here++];
  int64_t left = 0;
  for (int64_t i = 0; i < n; ++i) {
    items[left] = {z[i], w[i]};  // always written, so that there is nothing to predict
    left += steps.of(z[i]) == here;
  }
  return ts_boundary(items, left, running, limit, before);
}

// Values within [low, high), with the number and the weights' sum of all that are below `high`.
struct Within {
  float low, high;
  uint64_t upto;
  int64_t last;
};

// The same of values and weights that stay as they are, none of them below within.low; those from within.high on do not
// count. `items` is room for n of them, of which few are touched. below(pivot, &count) is the sum of the weights of values
// below pivot, and their number. Between near values the sum rises nearly as a straight line does: a pivot on either side
// of where it would meet the limit leaves few items, and two more fewer.
template <typename Below>
inline float ts_boundary(const float *z, const uint64_t *w, int64_t n, Within within, Weighed *items, uint64_t limit, uint64_t *before,
                         Below below) {
  constexpr int64_t kFew = 48;
  uint64_t under = 0;
  int64_t first = 0;
  for (int64_t inside = within.last; inside > kFew; inside = within.last - first) {
    const double share = (double)(int64_t)(limit - under) / (double)(int64_t)(within.upto - under);
    const double margin = (1.2 * sqrt((double)inside) + 4) / (double)inside;
    const float from = within.low, span = within.high - within.low;
    for (const double at : {share - margin, share + margin}) {
      const float pivot = from + (float)at * span;
      if (!(pivot > within.low && pivot < within.high)) continue;
      int64_t count;
      const uint64_t sum = below(pivot, &count);
      if (sum <= limit) {
        within.low = pivot;
        under = sum;
        first = count;
      } else {
        within.high = pivot;
        within.upto = sum;
        within.last = count;
      }
    }
    if (within.last - first > inside / 2) break;  // no straight line: equal values
  }
  int64_t left = 0;
  for (int64_t i = 0; i < n; ++i) {
    items[left] = {z[i], w[i]};  // always written, so that there is nothing to predict
    left += z[i] >= within.low && z[i] < within.high;
  }
  return ts_boundary(items, left, under, limit, before);
}
