// What all C++ test programs share.
#pragma once

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <random>
#include <string>
#include <vector>

#include "tunesmith.h"

#define REQUIRE(condition)                                                     \
  do {                                                                         \
    if (!(condition)) {                                                        \
      fprintf(stderr, "%s:%d: %s does not hold (%s)\n", __FILE__, __LINE__, #condition, ts_last_error()); \
      exit(1);                                                                 \
    }                                                                          \
  } while (0)

inline std::mt19937_64 generator(20240607);

inline int64_t pick(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }

inline std::vector<std::string> instruction_sets() {
  std::vector<std::string> names(1);
  for (const char *c = ts_isa_available(); *c; ++c) {
    if (*c == ',') names.emplace_back();
    else names.back() += *c;
  }
  return names;
}
