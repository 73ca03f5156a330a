// A row of logits, and what a block of threads can ask of it. A token that was dropped is at -inf: it weighs nothing, and no
// sum needs to know of it. Where few tokens are left, the row is a list of these alone.
#pragma once

#include <stddef.h>

#include "sampling_sort.h"

namespace {

constexpr int kListed = kThreads;  // most tokens of a list: a thread looks at one

__device__ inline float infinity() { return bits_to_float(0x7f800000u); }
__device__ inline float not_a_number() { return bits_to_float(0x7fc00000u); }

struct alignas(16) Four {
  float x[4];
};

// Room for the tokens that a search looks at, and for the list that a row is.
struct ListRoom {
  uint64_t items[kListed];  // keys, and below them places in the row
  alignas(16) float z[kListed];
  int32_t ids[kListed];
};
static_assert(offsetof(ListRoom, ids) == offsetof(ListRoom, z) + sizeof(float) * kListed, "room for as many doubles");

__device__ inline ListRoom *list_room() {
  __shared__ ListRoom room;
  return &room;
}

// What a value weighs. Held apart from a row, so that loops over tokens keep it in registers.
struct Scale {
  float max;
  double unit;

  __device__ uint64_t weight(float value) const { return ts_weight(ts_exp(value - max), unit); }
  __device__ uint64_t depth(float value) const {
    const float d = value - max;
    return ts_depth(d, ts_exp(d), unit);
  }
};

struct Row {
  float *z;      // 16-byte aligned
  int64_t vocab;  // how many there are: all, or those of the list
  double scale;
  float max = 0;
  float floor = 0;   // a value that at least kThreads tokens reach, as far as can be told without looking; of a whole row alone
  float lowest = 0;  // no token that is left is below; of a whole row alone
  const int32_t *ids = nullptr;  // ascending; null: place and id are one
  int listed = 0;                // how many of the items, sorted, are all tokens from a border on; 0: none are
  bool may_list = false;         // whether nothing to come needs the tokens that were dropped

  __device__ static uint32_t key_of(float value) { return ts_order_key(value); }
  __device__ Scale weigh() const { return {max, scale}; }
  __device__ uint64_t weight_of(float value) const { return weigh().weight(value); }
  __device__ uint64_t depth_of(float value) const { return weigh().depth(value); }
  __device__ int64_t id(int64_t place) const { return ids ? ids[place] : place; }

  // f(place, value) for those of the threads' tokens: some wide reads are on their way before any is looked at.
  template <typename Each>
  __device__ void each(Each f) const {
    walk<false>([&](int i, float &value) { f(i, value); });
  }

  // Every value becomes f(place, value).
  template <typename Change>
  __device__ void change(Change f) const {
    walk<true>([&](int i, float &value) { value = f(i, value); });
    __syncthreads();
  }

  // Takes what the threads saw of their own tokens: the largest, and the least that is left (+inf: none).
  __device__ void bounds(float best, float least) {
    max = block_max(best);
    floor = -block_max(-best);
    lowest = -block_max(-least);
  }

  // After a change of values: the largest one and the bounds of the rest.
  __device__ TS_NOINLINE void look() {
    float best = -infinity(), least = infinity();
    each([&](int, float value) {
      best = value > best ? value : best;
      if (value > -infinity()) least = value < least ? value : least;
    });
    bounds(best, least);
  }

  __device__ TS_NOINLINE uint64_t total() const {
    const Scale scale = weigh();
    uint64_t sum = 0;
    each([&](int, float value) { sum += scale.weight(value); });
    return block_sum(sum);
  }

  // How many tokens are left.
  __device__ TS_NOINLINE int64_t finite() const {
    uint64_t count = 0;
    each([&](int, float value) { count += value > -infinity(); });
    return (int64_t)block_sum(count);
  }

  template <typename Goes>
  __device__ void drop_if(Goes goes) const {
    change([&](int, float value) { return goes(value) ? -infinity() : value; });
  }

  // The place at which the sum of measure(value) over the tokens up to it, dropped ones left out, exceeds `aim(sum of all)`; vocab if
  // none does. A warp has a run of tokens of its own; that of the warp in whose run it happens is looked at again, by all.
  template <typename Measure, typename Aim>
  __device__ int64_t place_beyond(Measure measure, Aim aim) const {
    __shared__ int32_t found;
    __shared__ uint64_t start;
    constexpr int kAhead = 2;
    const int n = (int)vocab, wide = (n + 3) / 4, part = (wide + kBlockWarps - 1) / kBlockWarps;  // in fours
    const int warp = (int)threadIdx.x / kLanesOfWarp, lane = (int)threadIdx.x % kLanesOfWarp;
    const int first = warp * part, last = first + part < wide ? first + part : wide;
    uint64_t own = 0, sum;
    for (int begin = first + lane; begin < last; begin += kAhead * kLanesOfWarp) {
      Four some[kAhead];
      TS_UNROLL(2)
      for (int u = 0; u < kAhead; ++u) {
        const int at = begin + u * kLanesOfWarp;
        if (at < last && 4 * at + 4 <= n) some[u] = ((const Four *)z)[at];
        else if (at < last) {
          for (int j = 0; j < 4; ++j) some[u].x[j] = 4 * at + j < n ? z[4 * at + j] : -infinity();
        }
      }
      TS_UNROLL(2)
      for (int u = 0; u < kAhead; ++u) {
        const int at = begin + u * kLanesOfWarp;
        if (at >= last) break;
        TS_UNROLL(4)
        for (int j = 0; j < 4; ++j) {
          if (some[u].x[j] > -infinity()) own += measure(some[u].x[j]);
        }
      }
    }
    uint64_t before = block_before(own, &sum);
    const uint64_t target = aim(sum);
    if (target >= sum) return n;
    if (before <= target && target < before + own) found = warp;
    __syncthreads();
    const int hit = found;
    if (warp == hit && lane == 0) start = before;
    __syncthreads();
    const int begin = 4 * hit * part, end = begin + 4 * part < n ? begin + 4 * part : n;
    const int each_of = (end - begin + kThreads - 1) / kThreads;
    const int from = begin + (int)threadIdx.x * each_of, to = from + each_of < end ? from + each_of : end;
    own = 0;
    for (int i = from; i < to; ++i) own += z[i] > -infinity() ? measure(z[i]) : 0;
    before = start + block_before(own);
    if (before <= target && target < before + own) {
      int i = from;
      for (;; ++i) {
        before += z[i] > -infinity() ? measure(z[i]) : 0;
        if (before > target) break;
      }
      found = i;
    }
    __syncthreads();
    const int64_t place = found;
    __syncthreads();
    return place;
  }

  // Keeps every token above the threshold, and of those at it, in order of ids, the ones from `first` to before `last`.
  __device__ TS_NOINLINE void keep(uint32_t threshold, uint64_t first, uint64_t last) const {
    const auto at = [threshold](float value) { return key_of(value) == threshold; };
    const auto nth = [&](uint64_t rank) { return place_beyond(at, [rank](uint64_t) { return rank; }); };
    const int64_t from = first ? nth(first) : 0, to = last < (uint64_t)vocab ? nth(last) : vocab;
    change([threshold, from, to](int i, float value) {
      const uint32_t here = key_of(value);
      return here > threshold || (here == threshold && from <= i && i < to) ? value : -infinity();
    });
  }

  __device__ TS_NOINLINE int64_t first_maximum() const {
    uint64_t first = (uint64_t)vocab;
    const float most = max;
    each([&](int i, float value) {
      if (value == most && (uint64_t)i < first) first = (uint64_t)i;
    });
    return (int64_t)block_least(first);
  }

  __device__ TS_NOINLINE int64_t draw(uint64_t bits) const {
    const Scale scale = weigh();
    return place_beyond([scale](float value) { return scale.weight(value); }, [bits](uint64_t sum) { return ts_mulhi(bits, sum); });
  }

  // value is this row's, or was before something was dropped. +0 for -0, so that its log-probability has the CPU's sign.
  __device__ float logp(float value, uint64_t of_total) const { return ts_logp(value + 0.0f, max, of_total, scale); }

 private:
  template <bool kWrites, typename Look>
  __device__ void walk(Look look) const {
    constexpr int kAhead = 2;
    const int n = (int)vocab, wide = n / 4;
    float *const from = z;
    for (int begin = (int)threadIdx.x; begin < wide; begin += kAhead * kThreads) {
      Four some[kAhead];
      TS_UNROLL(2)
      for (int u = 0; u < kAhead; ++u) {
        if (begin + u * kThreads < wide) some[u] = ((const Four *)from)[begin + u * kThreads];
      }
      TS_UNROLL(2)
      for (int u = 0; u < kAhead; ++u) {
        if (begin + u * kThreads >= wide) break;
        TS_UNROLL(4)
        for (int j = 0; j < 4; ++j) look(4 * (begin + u * kThreads) + j, some[u].x[j]);
        if (kWrites) ((Four *)from)[begin + u * kThreads] = some[u];
      }
    }
    for (int i = 4 * wide + (int)threadIdx.x; i < n; i += kThreads) {
      float value = from[i];
      look(i, value);
      if (kWrites) from[i] = value;
    }
  }
};

}  // namespace
