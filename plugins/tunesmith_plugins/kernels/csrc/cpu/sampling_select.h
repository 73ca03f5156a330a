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

// The same of any number, by halving the bits of an ordered integer: 32 looks at all of x, whatever x is. seen(n) is told of
// each.
template <typename Seen>
TS_ONCE float kth_by_bits(const float *x, int64_t n, int64_t k, Seen seen) {
  uint32_t low = ts_order_key(-HUGE_VALF), beyond = ts_order_key(HUGE_VALF) + 1;  // at least k reach the one, fewer the other
  while (beyond - low > 1) {
    const uint32_t middle = low + (beyond - low) / 2;
    const float value = key_to_float(middle);
    const F bound = set1(value);
    int64_t reach = 0, i = 0;
    for (; i + kLanes <= n; i += kLanes) reach += __builtin_popcount(bits_of(at_least(load_f32(x + i), bound)));
    for (; i < n; ++i) reach += x[i] >= value;
    (reach >= k ? low : beyond) = middle;
    seen(n);
  }
  return key_to_float(low);
}

// Looks at each value of a list before its bits decide. Lists in order, and in none, take 1 to 3, seldom 7.
constexpr int64_t kLooks = 8;

// Quickselect (Hoare 1961) around a value that is about where the k-th should be, judged by 16 of them. Lists can be made of
// which only these 16 fall away each time; so this goes on only as long as it is quicker than the bits. seen(n) is told of
// every look at n values.
template <typename Seen>
TS_LANES float kth_seen(const float *x, int64_t n, int64_t k, float *room, Seen seen) {
  float *const sides[2] = {room, room + n + kLanes};
  int side = 0;  // where the larger values go; in place from the second turn on
  int64_t left = kLooks * n;
  while (n > kFew) {
    left -= n;
    if (left < 0) return kth_by_bits(x, n, k, seen);
    seen(n);
    float some[kLanes];
    for (int j = 0; j < kLanes; ++j) some[j] = x[n * (2 * j + 1) / (2 * kLanes)];  // of a list in order from all parts of it
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

float kth(const float *x, int64_t n, int64_t k, float *room) {
  return kth_seen(x, n, k, room, [](int64_t) {});
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
