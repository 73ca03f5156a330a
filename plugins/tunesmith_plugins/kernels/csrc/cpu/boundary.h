// Where a running sum of weights, in ascending order of values, goes beyond a limit.
#pragma once

#include <math.h>

#include <algorithm>

#include "scratch.h"

struct Weighed {
  float z;
  uint64_t w;
};

// Finds the smallest z at which `running` plus the weights of everything up to and including z exceeds limit; *before
// is the sum without the weights at z itself. items is reordered. The sum over all items must exceed the limit.
// Distributes over 256 equal steps of z, and goes on in the step where it happens.
inline float ts_boundary(Weighed *items, int64_t n, uint64_t running, uint64_t limit, uint64_t *before) {
  constexpr int kSteps = 256, kFew = 24;
  while (n > kFew) {
    float low = items[0].z, high = items[0].z;
    for (int64_t i = 1; i < n; ++i) {
      low = items[i].z < low ? items[i].z : low;
      high = items[i].z > high ? items[i].z : high;
    }
    const float scale = (float)(kSteps - 1) / (high - low);
    if (!(scale > 0 && scale < HUGE_VALF)) break;  // all equal, or too far apart for a difference
    uint64_t sums[kSteps] = {0};
    const auto step = [low, scale](float z) { return (int)((z - low) * scale) & (kSteps - 1); };
    for (int64_t i = 0; i < n; ++i) sums[step(items[i].z)] += items[i].w;
    int here = 0;
    while (running + sums[here] <= limit) running += sums[here++];
    int64_t left = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (step(items[i].z) == here) items[left++] = items[i];
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
