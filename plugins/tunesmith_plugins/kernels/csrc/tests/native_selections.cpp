// The k-th largest, and the boundary of top-p in a short list.
#include <float.h>
#include <math.h>

#include <algorithm>

#include "../cpu/short_list.h"
#include "native_tests.h"
#include "numeric.h"
#include "sampling.h"
#include "watched_selection.h"

// The k-th largest is what a sort finds, with many equals too, and nothing is read or written beyond the room.
void selections() {
  const auto descending = [](float a, float b) { return a > b; };
  for (const std::string &isa : instruction_sets()) {
    REQUIRE(ts_isa_set(isa.c_str()) == TS_OK);
    const TsSampling *kernels = ts_sampling();
    for (int trial = 0; trial < 600; ++trial) {
      const int64_t n = trial % 3 ? pick(1, 80) : pick(1, 4000), k = trial % 2 ? pick(1, n) : pick(1, std::min<int64_t>(n, 60));
      const int64_t kinds = trial % 4 ? 1000000 : pick(1, 6);
      auto x = exactly<float>(n), room = exactly<float>(2 * n + 2 * kLanes);
      for (int64_t i = 0; i < n; ++i) x[i] = pick(0, 19) ? (float)pick(-kinds, kinds) * .25f : -HUGE_VALF;
      if (trial % 5 == 0) std::sort(x.get(), x.get() + n, descending);
      std::vector<float> sorted(x.get(), x.get() + n);
      std::sort(sorted.begin(), sorted.end(), descending);
      REQUIRE(kernels->kth(x.get(), n, k, room.get()) == sorted[(size_t)k - 1]);
      if (n <= 2 * kLanes) REQUIRE(kernels->kth_of_few(x.get(), n, k) == sorted[(size_t)k - 1]);

      const int64_t count = (n + kLanes - 1) / kLanes * kLanes, wanted = std::min(k, count);
      auto lanes = exactly<float>(count), more = exactly<float>(3 * count + 2 * kLanes);
      for (int64_t i = 0; i < count; ++i) lanes[i] = (float)pick(-kinds, kinds);
      std::vector<float> whole(lanes.get(), lanes.get() + count);
      std::sort(whole.begin(), whole.end(), descending);
      const float reached = kernels->kth_of_lanes(lanes.get(), count, wanted, more.get());
      REQUIRE(reached <= whole[(size_t)wanted - 1] && std::count(whole.begin(), whole.end(), reached) > 0);
      const auto many = std::count_if(whole.begin(), whole.end(), [&](float v) { return v >= reached; });
      REQUIRE(kinds < 1000000 || many <= 40 * wanted + 40);  // of values without order not much less
    }
  }
  puts("selections: the k-th largest is that of a sort");
}

namespace {

// A list of which next to nothing falls away each time that kth parts it: what it judges by, 16 values at even distances, are
// always the smallest that are left, or the largest; which of them is the pivot follows from k and n.
std::vector<float> stubborn(int64_t n, bool largest_first) {
  std::vector<float> x((size_t)n);
  std::vector<int64_t> left((size_t)n);
  for (int64_t i = 0; i < n; ++i) left[(size_t)i] = i;
  for (float next = 1; !left.empty();) {
    std::vector<int64_t> stays;
    const int64_t size = (int64_t)left.size();
    for (int64_t i = 0, j = 0; i < size; ++i) {
      while (j < kLanes && size * (2 * j + 1) / (2 * kLanes) < i) ++j;
      const bool judged = size <= kLanes || (j < kLanes && size * (2 * j + 1) / (2 * kLanes) == i);
      if (judged) x[(size_t)left[(size_t)i]] = largest_first ? (float)n - next++ : next++;
      else stays.push_back(left[(size_t)i]);
    }
    left = stays;
  }
  return x;
}

}  // namespace

// However a list is made, kth looks at no value more than some 40 times; at few of an ordinary one more than 8 times.
void bounded_selections() {
  int64_t worst = 0, ordinary = 0;
  const auto looked = [](const std::vector<float> &x, int64_t k) {
    const int64_t n = (int64_t)x.size();
    auto room = exactly<float>(2 * n + 2 * kLanes);
    std::vector<float> sorted(x);
    std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), [](float a, float b) { return a > b; });
    int64_t looks;
    REQUIRE(watched_kth(x.data(), n, k, room.get(), &looks) == sorted[(size_t)k - 1]);
    REQUIRE(watched_bits(x.data(), n, k) == sorted[(size_t)k - 1]);
    for (const std::string &isa : instruction_sets()) {
      REQUIRE(ts_isa_set(isa.c_str()) == TS_OK);
      REQUIRE(ts_sampling()->kth(x.data(), n, k, room.get()) == sorted[(size_t)k - 1]);
    }
    return looks;
  };
  for (const int64_t n : {int64_t(33), int64_t(500), int64_t(4001), int64_t(20000)}) {
    for (const bool largest_first : {false, true}) {
      const std::vector<float> x = stubborn(n, largest_first);
      for (const int64_t k : {int64_t(1), int64_t(2), n / 16, n / 3, n / 2, n - n / 3, n - 1, n}) {
        const int64_t looks = looked(x, k);
        REQUIRE(looks <= 40 * n);
        worst = std::max(worst, looks / n);
      }
    }
  }
  REQUIRE(worst > 32);  // else these lists are no longer what they were made for
  for (int trial = 0; trial < 300; ++trial) {
    const int64_t n = pick(200, 6000), k = trial % 2 ? pick(1, n) : pick(1, 60), kinds = trial % 3 ? 1000000 : pick(1, 30);
    std::vector<float> x((size_t)n);
    for (float &v : x) v = pick(0, 30) ? (float)pick(-kinds, kinds) * .37f : trial % 5 ? -HUGE_VALF : -0.0f;
    if (trial % 7 < 2) std::sort(x.begin(), x.end());
    if (trial % 7 == 1) std::reverse(x.begin(), x.end());
    const int64_t looks = looked(x, k);
    REQUIRE(looks <= 8 * n);
    ordinary = std::max(ordinary, looks * 10 / n);
  }
  printf("bounded selections: %lld looks at each value of a list made for it at most, %.1f of others\n", (long long)worst, (double)ordinary / 10);
}

// The boundary of top-p in a short list is that of a sort, for equal values, weights of 0 and limits met exactly too.
void short_lists() {
  for (int trial = 0; trial < 20000; ++trial) {
    const int64_t n = pick(1, trial % 3 ? 60 : kShortList), kinds = trial % 2 ? 1000000 : pick(1, 12), heaviest = trial % 5 ? 1 << 20 : 3;
    auto z = exactly<float>(n);
    auto w = exactly<uint64_t>(n);
    uint64_t total = 0;
    std::vector<std::pair<float, uint64_t>> sorted;
    for (int64_t i = 0; i < n; ++i) {
      z[i] = (float)pick(-kinds, kinds) * (trial % 7 ? .25f : 3e32f);
      w[i] = (uint64_t)pick(0, heaviest);
      if (pick(0, 30) == 0) z[i] = -HUGE_VALF, w[i] = 0;
      total += w[i];
      sorted.push_back({z[i], w[i]});
    }
    if (!total) continue;
    const float max = *std::max_element(z.get(), z.get() + n);
    const uint64_t limit = trial % 4 ? (uint64_t)pick(0, (int64_t)total - 1) : 0;
    std::sort(sorted.begin(), sorted.end());
    uint64_t running = 0, before = 0;
    float boundary = 0;
    for (size_t i = 0; i < sorted.size();) {
      uint64_t same = 0;
      boundary = sorted[i].first;
      while (i < sorted.size() && sorted[i].first == boundary) same += sorted[i++].second;
      if (running + same > limit) break;
      running += same;
    }
    REQUIRE(ts_short_boundary(z.get(), w.get(), n, max, limit, &before) == boundary);
    REQUIRE(before == running);
  }
  puts("short lists: the boundary of top-p is that of a sort");
}
