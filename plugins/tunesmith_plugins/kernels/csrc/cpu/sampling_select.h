// The k-th largest of some values. Which values are large cannot be foreseen, and a wrong guess of the processor costs far
// more than a comparison: values are parted 16 at a time, without a branch on any of them. Included after sampling_lanes.h.
#include <string.h>

namespace {

constexpr int64_t kFew = 2 * kLanes;

// Of 1 to 32 values: the one that less than k others are larger than and at least k reach.
TS_ONCE float kth_of_few(const float *x, int64_t n, int64_t k) {
  float all[kFew], result = 0;
  for (int64_t i = 0; i < kFew; ++i) all[i] = i < n ? x[i] : -HUGE_VALF;
  const F low = load_f32(all), high = load_f32(all + kLanes);
  for (int64_t i = 0; i < n; ++i) {
    const F v = set1(all[i]);
    const int larger = __builtin_popcount(bits_of(less(v, low)) | bits_of(less(v, high)) << kLanes);
    const int reach = __builtin_popcount(bits_of(at_least(low, v)) | bits_of(at_least(high, v)) << kLanes);
    result = larger < k && k <= reach ? all[i] : result;
  }
  return result;
}

// Quickselect (Hoare 1961) around a value that is about where the k-th should be, judged by 16 of them.
float kth(const float *x, int64_t n, int64_t k, float *room) {
  float *const sides[2] = {room, room + n + kLanes};
  int side = 0;  // where the larger values go; in place from the second turn on
  while (n > kFew) {
    float some[kLanes];
    for (int j = 0; j < kLanes; ++j) some[j] = x[n * j / kLanes];
    const int64_t rank = 2 + (k - 1) * kLanes / n;  // one more than the share, for the larger side is the one that k is hoped in
    const float pivot = kth_of_few(some, kLanes, rank < kLanes ? rank : kLanes);
    const F bound = set1(pivot);
    float *const larger = sides[side], *const smaller = sides[1 - side];
    int64_t above = 0, under = 0;
    const auto part = [&](const F &v, M is_above, M is_under) {
      const uint32_t ups = bits_of(is_above), downs = bits_of(is_under);
      squeeze(larger + above, is_above, ups, v);
      squeeze(smaller + under, is_under, downs, v);
      above += __builtin_popcount(ups);
      under += __builtin_popcount(downs);
    };
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      const F v = load_f32(x + i);
      part(v, less(bound, v), less(v, bound));
    }
    if (i < n) {
      float rest[kLanes];
      for (int j = 0; j < kLanes; ++j) rest[j] = i + j < n ? x[i + j] : pivot;  // what equals it goes nowhere
      const F v = load_f32(rest);
      part(v, less(bound, v), less(v, bound));
    }
    if (k <= above) {
      x = larger;
      n = above;
    } else if (k > n - under) {
      k -= n - under;
      x = smaller;
      n = under;
      side = 1 - side;
    } else {
      return pivot;
    }
  }
  return kth_of_few(x, n, k);
}

// Fewer and larger groups of lanes do as well as long as there are twice as many as needed.
float kth_of_lanes(const float *lanes, int64_t count, int64_t k, float *room) {
  constexpr int64_t kGroup = 16;
  int64_t vectors = count / kLanes;
  const float *x = lanes;
  while (vectors * kLanes / kGroup >= 2 * k) {
    const int64_t fewer = (vectors + kGroup - 1) / kGroup;
    for (int64_t g = 0; g < fewer; ++g) {
      const int64_t end = g * kGroup + kGroup < vectors ? g * kGroup + kGroup : vectors;
      F best = load_f32(x + g * kGroup * kLanes);
      for (int64_t v = g * kGroup + 1; v < end; ++v) best = max(load_f32(x + v * kLanes), best);
      store_f32(room + g * kLanes, best);
    }
    x = room;
    vectors = fewer;
  }
  return kth(x, vectors * kLanes, k, room + count);
}

}  // namespace
