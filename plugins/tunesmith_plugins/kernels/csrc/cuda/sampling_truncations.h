// Truncations of a row in device memory: the limits of truncations.h, and sums over integers to find them.
#pragma once

#include "sampling_search.h"
#include "truncations.h"

namespace {

constexpr uint64_t kAllTies = ~(uint64_t)0;

// What comes before the border goes, and `go` of the tokens at it.
struct Cut {
  Border border;
  uint64_t go;
};

__device__ TS_NOINLINE inline void cut_off(Row &row, const Cut &cut) {
  if (row.listed && row.may_list) become_list(row, cut.border.place + (int)cut.go, row.listed);
  else row.keep(cut.border.key, cut.go, kAllTies);
}

__device__ inline void top_k(Row &row, double k) {
  if (k < 1 || k >= (double)row.vocab) return;
  cut_off(row, {kth_border(row, (int64_t)k), 0});
}

__device__ TS_NOINLINE inline Cut top_p_cut(Row &row, double p) {
  uint64_t all, limit = 0;
  const auto aim = [&](uint64_t sum) {  // one token stays, whatever the limit is
    limit = ts_top_p_limit(p, sum);
    return limit = limit < sum ? limit : sum - 1;
  };
  const Border border = border_beyond(row, Weights(row), aim, &all);
  return {border, (limit - border.below) / row.weight_of(key_to_float(border.key))};
}

__device__ inline void top_p(Row &row, double p) {
  if (p < 1) cut_off(row, top_p_cut(row, p));
}

__device__ TS_NOINLINE inline void min_p(const Row &row, double p) {
  const float max = row.max;
  row.drop_if([max, p](float z) { return (double)ts_exp(z - max) < p; });
}

__device__ TS_NOINLINE inline double mean_depth(const Row &row, uint64_t total) {
  const Scale scale = row.weigh();
  uint64_t sum = 0;
  row.each([&](int, float value) { sum += scale.depth(value); });
  return ts_mean_depth(block_sum(sum), total);
}

__device__ inline void epsilon(const Row &row, double value) {
  if (value > 0) min_p(row, ts_least_likely(value, ts_mass(row.total(), row.scale)));
}

__device__ inline void top_a(const Row &row, double value) {
  if (value > 0) min_p(row, ts_top_a_least(value, ts_mass(row.total(), row.scale)));
}

__device__ TS_NOINLINE inline void eta(const Row &row, double value) {
  if (!ts_eta_cuts(value)) return;
  const uint64_t total = row.total();
  const double least = ts_least_likely(value, ts_mass(total, row.scale));
  const double depth = ts_eta_depth(value, mean_depth(row, total));
  const float max = row.max;
  row.drop_if([=](float z) {
    const float d = z - max;
    return !ts_eta_keeps(d, ts_exp(d), least, depth);
  });
}

__device__ TS_NOINLINE inline void top_n_sigma(const Row &row, double n) {
  float least = row.max;
  row.each([&](int, float value) {
    if (value > -infinity() && value < least) least = value;
  });
  const double highest = row.max, extent = highest - (double)-block_max(-least), inverse = ts_sigma_inverse(extent);
  uint64_t first = 0, second = 0, finite = 0;
  row.each([&](int, float value) {
    if (!(value > -infinity())) return;
    const double u = (highest - (double)value) * inverse;
    first += ts_fixed(u, row.scale);
    second += ts_fixed(u * u, row.scale);
    ++finite;
  });
  first = block_sum(first);
  second = block_sum(second);
  const double bound = ts_sigma_bound(n, highest, extent, first, second, (int64_t)block_sum(finite), row.scale);
  row.drop_if([&](float z) { return (double)z < bound; });
}

// May drop the likeliest token.
__device__ TS_NOINLINE inline void typical(Row &row, double mass, double least) {
  if (mass >= 1) return;
  const uint64_t total = row.total(), wanted = ts_typical_wanted(mass, total);
  const double depth = mean_depth(row, total);
  const auto key = [&](float value) { return ts_order_key(ts_typical_distance(value - row.max, depth)); };
  uint64_t below;
  uint32_t bound = key_beyond(row, wanted - 1, key, Weights(row), &below);
  const int64_t finite = row.finite(), fewest = least < (double)finite ? (int64_t)least : finite;
  if (fewest > 1) {
    const uint32_t other = key_beyond(row, (uint64_t)(fewest - 1), key, Ones(row), &below);
    bound = other > bound ? other : bound;
  }
  const float furthest = key_to_float(bound);
  row.drop_if([&](float z) { return !(ts_typical_distance(z - row.max, depth) <= furthest); });
  row.look();
}

// Some of the tokens, the likeliest first: all whose key is above `last`, and `ties` of those at it.
struct Likeliest {
  uint32_t last;
  uint64_t ties, weight, depth;
};

__device__ TS_NOINLINE inline Likeliest likeliest(Row &row, int64_t count) {
  Likeliest found = {kth_key(row, count), 0, 0, 0};
  const Scale scale = row.weigh();
  uint64_t above = 0;
  row.each([&](int, float value) {
    if (Row::key_of(value) <= found.last) return;
    ++above;
    found.weight += scale.weight(value);
    found.depth += scale.depth(value);
  });
  found.ties = (uint64_t)count - block_sum(above);
  const float value = key_to_float(found.last);
  found.weight = block_sum(found.weight) + found.ties * row.weight_of(value);
  found.depth = block_sum(found.depth) + found.ties * row.depth_of(value);
  return found;
}

// The likeliest tokens, equals by id, while what they spend is within the limit, and always one. Goes down the keys as
// key_beyond goes up, by 8 bits at a time, since it needs two sums.
__device__ TS_NOINLINE inline void top_h(Row &row, double h, double candidates) {
  constexpr int kDigit = 256;
  __shared__ uint32_t found;
  __shared__ uint64_t sums[2];
  Buckets &buckets = *bucket_room();  // the weights, and behind them the depths
  const int64_t finite = row.finite();
  const Likeliest all = likeliest(row, candidates < (double)finite ? (int64_t)candidates : finite);
  const double log_mass = ts_log(ts_mass(all.weight, row.scale));
  const double limit = h * ts_top_h_spent(log_mass, all.weight, all.depth);
  const uint64_t end = (uint32_t)~all.last;  // keys upside down, so that the likeliest comes first
  uint64_t prefix = 0, weight = 0, depth = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    buckets.clear(2 * kDigit);
    const Scale scale = row.weigh();
    row.each([&](int, float value) {
      const uint64_t key = (uint32_t)~Row::key_of(value);
      if (key > end || key >> (shift + 8) != prefix >> (shift + 8)) return;  // behind `end` nothing is asked for
      buckets.add((int)((key >> shift) % kDigit), scale.weight(value));
      buckets.add((int)((key >> shift) % kDigit) + kDigit, scale.depth(value));
    });
    __syncthreads();
    if (threadIdx.x == 0) {
      const uint64_t stop = prefix >> (shift + 8) == end >> (shift + 8) ? (end >> shift) % kDigit : kDigit - 1;
      uint64_t b = 0;
      for (; b < stop && ts_top_h_spent(log_mass, weight + buckets.sum((int)b), depth + buckets.sum((int)b + kDigit)) <= limit; ++b) {
        weight += buckets.sum((int)b);
        depth += buckets.sum((int)b + kDigit);
      }
      found = (uint32_t)b;
      sums[0] = weight;
      sums[1] = depth;
    }
    __syncthreads();
    prefix |= (uint64_t)found << shift;
    weight = sums[0];
    depth = sums[1];
    __syncthreads();
  }
  const uint32_t last = ~(uint32_t)prefix;
  const float value = key_to_float(last);
  const uint64_t one = row.weight_of(value), deep = row.depth_of(value);
  // How many of the tokens at `last` fit; of those that are not all candidates' last, all together do not.
  uint64_t fit = 0, most = last == all.last ? all.ties : (uint64_t)row.vocab;
  while (fit < most) {
    const uint64_t middle = fit + (most - fit + 1) / 2;
    if (ts_top_h_spent(log_mass, weight + middle * one, depth + middle * deep) <= limit) fit = middle;
    else most = middle - 1;
  }
  row.keep(last, 0, fit == 0 && last == ts_order_key(row.max) ? 1 : fit);
}

// Drops the likeliest tokens on purpose.
__device__ TS_NOINLINE inline void xtc(Row &row, double threshold) {
  const double mass = ts_mass(row.total(), row.scale), least = threshold * mass, log_mass = ts_log(mass);
  if (least > 1) return;
  float bound = row.max;
  row.each([&](int, float value) {
    if (value < bound && value > -infinity() && ts_xtc_choice(value - row.max, least, log_mass)) bound = value;
  });
  const float lowest = -block_max(-bound);
  row.drop_if([&](float z) { return z > lowest; });
  row.look();
}

}  // namespace
