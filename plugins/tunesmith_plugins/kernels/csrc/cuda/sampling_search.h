// The value at which a sum over a row's tokens, in the order of their values, exceeds a limit.
#pragma once

#include "sampling_row.h"

namespace {

constexpr int kBuckets = 2048;

// Sums of 64 bits in two halves: the device adds up numbers of 32 bits where they lie.
struct alignas(8) Buckets {
  uint32_t low[kBuckets], high[kBuckets];

  __device__ void clear(int size) {
    for (int b = threadIdx.x; b < size; b += kThreads) low[b] = high[b] = 0;
    __syncthreads();
  }
  __device__ void add(int b, uint64_t value) {
    const uint32_t more = (uint32_t)value, before = atomicAdd(low + b, more);
    const uint32_t carried = (uint32_t)(value >> 32) + (before + more < more);
    if (carried) atomicAdd(high + b, carried);
  }
  __device__ uint64_t sum(int b) const { return (uint64_t)high[b] << 32 | low[b]; }
};

// One for all searches of a kernel, since they take turns; others keep 64-bit numbers there.
__device__ inline Buckets *bucket_room() {
  __shared__ Buckets buckets;
  return &buckets;
}

struct Hit {
  int bucket;
  uint64_t below, with;  // the sum before it, and with it
};

// The first of `size` buckets, in the order at(0), at(1) ..., up to which the sum exceeds limit, when `running` comes before.
template <typename At>
__device__ Hit first_beyond(const Buckets &buckets, int size, uint64_t running, uint64_t limit, At at) {
  __shared__ Hit hit;
  const int some = (size + kThreads - 1) / kThreads, begin = (int)threadIdx.x * some, end = begin + some < size ? begin + some : size;
  uint64_t own = 0;
  for (int b = begin; b < end; ++b) own += buckets.sum(at(b));
  uint64_t before = running + block_before(own);
  if (before <= limit && limit < before + own) {
    int b = begin;
    while (before + buckets.sum(at(b)) <= limit) before += buckets.sum(at(b++));
    hit = {at(b), before, before + buckets.sum(at(b))};
  }
  __syncthreads();
  const Hit found = hit;
  __syncthreads();
  return found;
}

// Finds the smallest key(value) at which the sum of measure(value) over all tokens with a key up to it exceeds limit; *below is
// the sum without those of that very key. The sum over all must exceed the limit. Counts by digits, the highest first.
template <typename Key, typename Measure>
__device__ TS_NOINLINE uint32_t key_beyond(const Row &row, uint64_t limit, Key key, Measure measure, uint64_t *below) {
  Buckets &buckets = *bucket_room();
  const int shifts[] = {21, 10, 0}, widths[] = {11, 11, 10};
  uint32_t prefix = 0;
  uint64_t running = 0;
  for (int level = 0; level < 3; ++level) {
    const int shift = shifts[level], high = shift + widths[level], size = 1 << widths[level];
    buckets.clear(size);
    row.each([&](int, float value) {
      const uint32_t k = key(value);
      if (level == 0 || k >> high == prefix >> high) buckets.add((int)(k >> shift) & (size - 1), measure(value));
    });
    __syncthreads();
    const Hit hit = first_beyond(buckets, size, running, limit, [](int b) { return b; });
    prefix |= (uint32_t)hit.bucket << shift;
    running = hit.below;
  }
  *below = running;
  return prefix;
}

// Equal parts of the values from the largest of a row downwards; what is further off is in the last one. A larger value is in
// no later part.
struct Parts {
  float max, per;

  __device__ Parts(float max, float reach) : max(max), per(reach > 0 ? (float)(kBuckets - 1) / reach : 0) {
    if (!(per < 1e30f)) per = 1e30f;
  }
  __device__ int of(float value) const {
    const float at = (max - value) * per;
    return at < (float)(kBuckets - 1) ? (int)at : kBuckets - 1;
  }
};

// What a search adds up of every token, and how far below the maximum it has to look, or may.
struct Weights {
  static constexpr bool kBound = true;  // most() may be more than there are
  Scale scale;
  float lowest;

  __device__ explicit Weights(const Row &row) : scale(row.weigh()), lowest(row.lowest) {}
  __device__ uint64_t operator()(float value) const { return scale.weight(value); }
  __device__ float reach() const {
    const float whole = scale.max - lowest;
    return whole < 32.0f ? whole : 32.0f;  // exp(-32) weighs nothing
  }
  // No more tokens than this weigh so much together and are above a value.
  __device__ uint64_t most(uint64_t sum, float value) const {
    const uint64_t least = scale.weight(value);
    return least ? sum / least : ~(uint64_t)0;
  }
};
struct Ones {
  static constexpr bool kBound = false;
  float max, lowest;

  __device__ explicit Ones(const Row &row) : max(row.max), lowest(row.floor > -infinity() ? row.floor : row.lowest) {}
  __device__ uint64_t operator()(float) const { return 1; }
  __device__ float reach() const { return max - lowest; }
  __device__ uint64_t most(uint64_t sum, float) const { return sum; }
};

// Makes items of the tokens that `wanted` says, sorted by value and place; returns how many there are, or more than kListed, and
// then they are not whole.
template <typename Wanted>
__device__ int list_items(const Row &row, Wanted wanted) {
  __shared__ uint32_t count;
  uint64_t *items = list_room()->items;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  row.each([&](int i, float value) {
    if (!wanted(value)) return;
    const uint32_t at = atomicAdd(&count, 1u);
    if (at < (uint32_t)kListed) items[at] = (uint64_t)Row::key_of(value) << 32 | (uint64_t)i;
  });
  __syncthreads();
  const int found = count < (uint32_t)kListed ? (int)count : kListed + (count > (uint32_t)kListed);
  __syncthreads();
  if (found <= kListed) block_sort(items, found);
  return found;
}

struct Border {
  uint32_t key;
  uint64_t below;  // the sum of all tokens with smaller keys
  int place;       // where in the items its first token is, if row.listed
};

// Of the items, which come after `running`: the first key up to which the sum exceeds the limit.
template <typename Measure>
__device__ Border border_of_items(int count, uint64_t running, uint64_t limit, const Measure &measure) {
  __shared__ Border border;
  const uint64_t *items = list_room()->items;
  const int here = (int)threadIdx.x;
  const uint32_t key = here < count ? (uint32_t)(items[here] >> 32) : 0;
  const uint64_t own = here < count ? measure(key_to_float(key)) : 0, before = running + block_before(own);
  if (before <= limit && limit < before + own) border.key = key;
  __syncthreads();
  if (here < count && key == border.key && (here == 0 || (uint32_t)(items[here - 1] >> 32) != key)) {
    border.below = before;
    border.place = here;
  }
  __syncthreads();
  const Border found = border;
  __syncthreads();
  return found;
}

// The smallest key at which the sum of measure(value) over all tokens with keys up to it exceeds `aim(sum of all)`, which is
// below that sum. Sets row.listed where the items are all tokens from there on.
template <typename Measure, typename Aim>
__device__ TS_NOINLINE Border border_beyond(Row &row, const Measure &measure, Aim aim, uint64_t *all) {
  const auto by_digits = [&](uint64_t limit) {
    Border border = {0, 0, 0};
    border.key = key_beyond(row, limit, [](float value) { return Row::key_of(value); }, measure, &border.below);
    return border;
  };
  row.listed = 0;
  if (row.vocab <= kListed) {
    const int count = list_items(row, [](float) { return true; });
    uint64_t own = (int)threadIdx.x < count ? measure(key_to_float((uint32_t)(list_room()->items[threadIdx.x] >> 32))) : 0;
    *all = block_sum(own);
    row.listed = count;
    return border_of_items(count, 0, aim(*all), measure);
  }
  const Parts parts(row.max, measure.reach());
  Buckets &buckets = *bucket_room();
  buckets.clear(kBuckets);
  uint64_t rest = 0;  // of the last one, without waiting for one another
  row.each([&](int, float value) {
    const int part = parts.of(value);
    const uint64_t own = measure(value);
    if (part == kBuckets - 1) rest += own;
    else if (own) buckets.add(part, own);
  });
  rest = block_sum(rest);
  if (threadIdx.x == 0) buckets.add(kBuckets - 1, rest);
  __syncthreads();
  uint64_t sum = 0;
  for (int b = threadIdx.x; b < kBuckets; b += kThreads) sum += buckets.sum(b);
  *all = sum = block_sum(sum);
  const uint64_t limit = aim(sum);
  const Hit hit = first_beyond(buckets, kBuckets, 0, limit, [](int b) { return kBuckets - 1 - b; });
  if (hit.bucket == kBuckets - 1) return by_digits(limit);
  const float edge = row.max - (float)(hit.bucket + 1) / parts.per;  // nearly
  bool whole = measure.most(sum - hit.below, edge) <= (uint64_t)kListed;
  if (!whole && Measure::kBound && row.may_list) {
    uint64_t from_there_on = 0;
    row.each([&](int, float value) { from_there_on += parts.of(value) <= hit.bucket; });
    whole = block_sum(from_there_on) <= (uint64_t)kListed;
  }
  const int count = list_items(row, [&](float value) { return whole ? parts.of(value) <= hit.bucket : parts.of(value) == hit.bucket; });
  if (count > kListed) return by_digits(limit);
  if (whole) row.listed = count;
  return border_of_items(count, hit.below, limit, measure);
}

// The border of the k largest values, equals counted one by one.
__device__ TS_NOINLINE inline Border kth_border(Row &row, int64_t k) {
  uint64_t all;
  const int64_t rest = row.vocab - k;
  return border_beyond(row, Ones(row), [rest](uint64_t) { return (uint64_t)rest; }, &all);
}
__device__ inline uint32_t kth_key(Row &row, int64_t k) { return kth_border(row, k).key; }

// Makes the row a list of the items from `first` on.
__device__ TS_NOINLINE inline void become_list(Row &row, int first, int count) {
  ListRoom *room = list_room();
  const int here = (int)threadIdx.x, size = count - first;
  uint64_t item = 0;
  if (here < size) {
    item = room->items[first + here];
    item = item << 32 | item >> 32;
  }
  __syncthreads();
  if (here < size) room->items[here] = item;
  __syncthreads();
  block_sort(room->items, size);
  const int32_t id = here < size ? (int32_t)row.id((int64_t)(room->items[here] >> 32)) : 0;
  __syncthreads();
  if (here < size) {
    room->ids[here] = id;
    room->z[here] = key_to_float((uint32_t)room->items[here]);
  }
  __syncthreads();
  row.z = room->z;
  row.ids = room->ids;
  row.vocab = size;
  row.listed = 0;
}

}  // namespace
