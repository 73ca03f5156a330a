// Truncations of a row in device memory: the limits of truncations.h, and sums over integers to find them.
#pragma once

#include "sampling_row.h"
#include "truncations.h"

namespace {

constexpr uint64_t kAllTies = ~(uint64_t)0;

__device__ inline void top_k(const Row &row, double k) {
  if (k < 1 || k >= (double)row.vocab) return;
  row.keep(row.kth_key((int64_t)k), 0, kAllTies);
}

// What lies below `key` goes, and `go` of the tokens at it.
struct Border {
  uint32_t key;
  uint64_t go;
};

__device__ inline Border top_p_border(const Row &row, double p) {
  const uint64_t all = row.total(), limit = ts_top_p_limit(p, all);
  Border border = {ts_order_key(row.max), 0};
  if (limit >= all) {
    for (int64_t i = threadIdx.x; i < row.vocab; i += kThreads) border.go += row.key(i) == border.key;
    border.go = block_sum(border.go) - 1;
  } else {
    uint64_t below;
    border.key = key_beyond(
        row.vocab, limit, [&](int64_t i) { return row.key(i); }, [&](int64_t i) { return row.weight(i); }, &below);
    border.go = (limit - below) / row.weight_of(key_to_float(border.key));
  }
  return border;
}

__device__ inline void top_p(const Row &row, double p) {
  if (p >= 1) return;
  const Border border = top_p_border(row, p);
  row.keep(border.key, border.go, kAllTies);
}

__device__ inline void min_p(const Row &row, double p) {
  row.drop_if([&](float z) { return (double)ts_exp(z - row.max) < p; });
}

__device__ inline double mean_depth(const Row &row, uint64_t total) {
  uint64_t sum = 0;
  for (int64_t i = threadIdx.x; i < row.vocab; i += kThreads) sum += row.depth_of(row.z[i]);
  return ts_mean_depth(block_sum(sum), total);
}

__device__ inline void epsilon(const Row &row, double value) {
  if (value > 0) min_p(row, ts_least_likely(value, ts_mass(row.total(), row.scale)));
}

__device__ inline void top_a(const Row &row, double value) {
  if (value > 0) min_p(row, ts_top_a_least(value, ts_mass(row.total(), row.scale)));
}

__device__ inline void eta(const Row &row, double value) {
  if (!ts_eta_cuts(value)) return;
  const uint64_t total = row.total();
  const double least = ts_least_likely(value, ts_mass(total, row.scale));
  const double depth = ts_eta_depth(value, mean_depth(row, total));
  row.drop_if([&](float z) {
    const float d = z - row.max;
    return !ts_eta_keeps(d, ts_exp(d), least, depth);
  });
}

__device__ inline void top_n_sigma(const Row &row, double n) {
  uint64_t lowest = ts_order_key(row.max), first = 0, second = 0, finite = 0;
  for (int64_t i = threadIdx.x; i < row.vocab; i += kThreads) {
    const uint32_t key = row.key(i);
    if (row.z[i] > -infinity() && key < lowest) lowest = key;
  }
  const double highest = row.max, extent = highest - (double)key_to_float((uint32_t)block_least(lowest));
  const double inverse = ts_sigma_inverse(extent);
  for (int64_t i = threadIdx.x; i < row.vocab; i += kThreads) {
    if (!(row.z[i] > -infinity())) continue;
    const double u = (highest - (double)row.z[i]) * inverse;
    first += ts_fixed(u, row.scale);
    second += ts_fixed(u * u, row.scale);
    ++finite;
  }
  first = block_sum(first);
  second = block_sum(second);
  const double bound = ts_sigma_bound(n, highest, extent, first, second, (int64_t)block_sum(finite), row.scale);
  row.drop_if([&](float z) { return (double)z < bound; });
}

// May drop the likeliest token.
__device__ inline void typical(Row &row, double mass, double least) {
  if (mass >= 1) return;
  const uint64_t total = row.total(), wanted = ts_typical_wanted(mass, total);
  const double depth = mean_depth(row, total);
  const auto key = [&](int64_t i) { return ts_order_key(ts_typical_distance(row.z[i] - row.max, depth)); };
  uint64_t below;
  uint32_t bound = key_beyond(row.vocab, wanted - 1, key, [&](int64_t i) { return row.weight(i); }, &below);
  const int64_t finite = row.finite(), fewest = least < (double)finite ? (int64_t)least : finite;
  if (fewest > 1) {
    const uint32_t other = key_beyond(row.vocab, (uint64_t)(fewest - 1), key, [](int64_t) { return (uint64_t)1; }, &below);
    bound = other > bound ? other : bound;
  }
  const float furthest = key_to_float(bound);
  row.drop_if([&](float z) { return !(ts_typical_distance(z - row.max, depth) <= furthest); });
  row.max = row.maximum();
}

// Some of the tokens, the likeliest first: all whose key is above `last`, and `ties` of those at it.
struct Likeliest {
  uint32_t last;
  uint64_t ties, weight, depth;
};

__device__ inline Likeliest likeliest(const Row &row, int64_t count) {
  Likeliest found = {row.kth_key(count), 0, 0, 0};
  uint64_t above = 0;
  for (int64_t i = threadIdx.x; i < row.vocab; i += kThreads) {
    if (row.key(i) <= found.last) continue;
    ++above;
    found.weight += row.weight(i);
    found.depth += row.depth_of(row.z[i]);
  }
  found.ties = (uint64_t)count - block_sum(above);
  const float value = key_to_float(found.last);
  found.weight = block_sum(found.weight) + found.ties * row.weight_of(value);
  found.depth = block_sum(found.depth) + found.ties * row.depth_of(value);
  return found;
}

// The likeliest tokens, equals by id, while what they spend is within the limit, and always one. Goes down the keys as
// key_beyond goes up, by 8 bits at a time, since it needs two sums.
__device__ inline void top_h(const Row &row, double h, double candidates) {
  constexpr int kDigit = 256;
  __shared__ uint32_t found;
  __shared__ uint64_t sums[2];
  unsigned long long *weights = bucket_room(), *depths = weights + kDigit;
  const int64_t finite = row.finite();
  const Likeliest all = likeliest(row, candidates < (double)finite ? (int64_t)candidates : finite);
  const double log_mass = ts_log(ts_mass(all.weight, row.scale));
  const double limit = h * ts_top_h_spent(log_mass, all.weight, all.depth);
  const uint64_t end = (uint32_t)~all.last;  // keys upside down, so that the likeliest comes first
  uint64_t prefix = 0, weight = 0, depth = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int b = threadIdx.x; b < kDigit; b += kThreads) weights[b] = depths[b] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < row.vocab; i += kThreads) {
      const uint64_t key = (uint32_t)~row.key(i);
      if (key > end || key >> (shift + 8) != prefix >> (shift + 8)) continue;  // behind `end` nothing is asked for
      atomicAdd(weights + (key >> shift) % kDigit, (unsigned long long)row.weight(i));
      atomicAdd(depths + (key >> shift) % kDigit, (unsigned long long)row.depth_of(row.z[i]));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      const uint64_t stop = prefix >> (shift + 8) == end >> (shift + 8) ? (end >> shift) % kDigit : kDigit - 1;
      uint64_t b = 0;
      for (; b < stop && ts_top_h_spent(log_mass, weight + weights[b], depth + depths[b]) <= limit; ++b) {
        weight += weights[b];
        depth += depths[b];
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
__device__ inline void xtc(Row &row, double threshold) {
  const double mass = ts_mass(row.total(), row.scale), least = threshold * mass, log_mass = ts_log(mass);
  if (least > 1) return;
  uint64_t bound = ts_order_key(row.max);
  for (int64_t i = threadIdx.x; i < row.vocab; i += kThreads) {
    const uint32_t key = row.key(i);
    if (key < bound && row.z[i] > -infinity() && ts_xtc_choice(row.z[i] - row.max, least, log_mass)) bound = key;
  }
  const float lowest = key_to_float((uint32_t)block_least(bound));
  row.drop_if([&](float z) { return z > lowest; });
  row.max = row.maximum();
}

}  // namespace
