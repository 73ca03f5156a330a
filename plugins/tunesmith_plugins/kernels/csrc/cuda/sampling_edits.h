// Steps that name single tokens or change every value.
#pragma once

#include "edits.h"
#include "sampling_row.h"

namespace {

// The tokens that a step names in a row.
struct Listed {
  const int64_t *ids;
  const float *amounts;
  int64_t length;
};

// Quotients are in the order of what was divided, so the bounds are those of the quotients.
__device__ TS_NOINLINE inline void divide(Row &row, float divisor) {
  row.change([divisor](int, float value) { return value / divisor; });
  row.max = row.max / divisor;
  row.floor = row.floor / divisor;
  row.lowest = row.lowest / divisor;
}

__device__ inline void clear_marks(const Row &row, uint32_t *marks) {
  for (int64_t i = threadIdx.x; i < (row.vocab + 31) / 32; i += kThreads) marks[i] = 0;
  __syncthreads();
}

__device__ TS_NOINLINE inline void edit(const Row &row, int32_t op, const Listed &listed, double value, uint32_t *marks) {
  clear_marks(row, marks);
  for (int64_t j = threadIdx.x; j < listed.length; j += kThreads) {
    const int64_t id = listed.ids[j];
    if (id < 0 || id >= row.vocab) continue;
    const uint32_t bit = 1u << (id % 32);
    if (atomicOr(marks + id / 32, bit) & bit) continue;  // another thread has this token
    float sum = 0;
    if (op == TS_FREQUENCY_PENALTY || op == TS_BIAS) {
      for (int64_t i = 0; i < listed.length; ++i) {
        if (listed.ids[i] == id) sum += listed.amounts ? listed.amounts[i] : 1.0f;
      }
    }
    row.z[id] = ts_edited(op, row.z[id], value, sum);
  }
  __syncthreads();
}

// Drops the listed tokens, or all others.
__device__ TS_NOINLINE inline void remove(const Row &row, bool ban, const Listed &listed, uint32_t *marks) {
  clear_marks(row, marks);
  for (int64_t j = threadIdx.x; j < listed.length; j += kThreads) {
    const int64_t id = listed.ids[j];
    if (id >= 0 && id < row.vocab) atomicOr(marks + id / 32, 1u << (id % 32));
  }
  __syncthreads();
  row.change([&](int i, float value) { return (bool)(marks[i / 32] >> (i % 32) & 1) == ban ? -infinity() : value; });
}

__device__ TS_NOINLINE inline void mask(const Row &row, const int32_t *words, int64_t count) {
  row.change([&](int i, float value) { return ts_allowed(words, count, i) ? value : -infinity(); });
}

}  // namespace
