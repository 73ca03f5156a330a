// What the programs of sampling tests share.
#pragma once

#include <stdint.h>

#include <memory>
#include <random>
#include <vector>

#include "checks.h"
#include "tunesmith.h"

inline double real(double low, double high) { return std::uniform_real_distribution<double>(low, high)(generator); }

// A heap array of exactly n items, so that one item too far is seen.
template <typename T>
std::unique_ptr<T[]> exactly(int64_t n) {
  return std::unique_ptr<T[]>(new T[(size_t)n]());
}

template <typename T>
bool same(const T *a, const T *b, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if (!(a[i] == b[i] || (a[i] != a[i] && b[i] != b[i]))) return false;
  }
  return true;
}

inline ts_step made_of(int32_t op, const double *value) {
  ts_step made = {};
  made.op = op;
  made.dtype = TS_F64;
  made.values = value;
  return made;
}

// A call for one row, outputs left out.
inline ts_sample_args one_row(const std::vector<float> &logits, const ts_step *steps, int64_t count, const int64_t *key) {
  ts_sample_args args = {};
  args.logits = logits.data();
  args.batch = 1;
  args.vocab = args.row_stride = (int64_t)logits.size();
  args.seed = args.stream = args.position = key;
  args.steps = steps;
  args.step_count = count;
  return args;
}

// native_estimates.cpp
void sums_of_rows();
void flat_rows();
void tiny_values();

// native_selections.cpp
void selections();
void bounded_selections();
void short_lists();
