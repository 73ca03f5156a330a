// What the programs of sampling tests share.
#pragma once

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tunesmith.h"

#define REQUIRE(condition)                                                     \
  do {                                                                         \
    if (!(condition)) {                                                        \
      fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
      exit(1);                                                                 \
    }                                                                          \
  } while (0)

inline std::mt19937_64 generator(20240607);

inline int64_t pick(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }
inline double real(double low, double high) { return std::uniform_real_distribution<double>(low, high)(generator); }

inline std::vector<std::string> instruction_sets() {
  std::vector<std::string> names(1);
  for (const char *c = ts_isa_available(); *c; ++c) {
    if (*c == ',') names.emplace_back();
    else names.back() += *c;
  }
  return names;
}

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
