// Which tokens a watermark makes likelier: token t is green if the upper 53 bits of a Philox number with the key, the
// ids before (folded into `stream`) and t in its counter are below `bound`.
#pragma once

#include "numeric.h"
#include "sampling.h"

namespace {

// Philox of 16 tokens side by side, so that the compiler has vectors to make.
inline uint16_t green_group(int64_t key, uint64_t stream, uint64_t bound, uint32_t first) {
  uint32_t c0[kLanes], c1[kLanes], c2[kLanes], c3[kLanes];
  for (int j = 0; j < kLanes; ++j) {
    c0[j] = 0;
    c1[j] = first + (uint32_t)j;
    c2[j] = (uint32_t)stream;
    c3[j] = (uint32_t)(stream >> 32);
  }
  uint32_t k0 = (uint32_t)key, k1 = (uint32_t)((uint64_t)key >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int j = 0; j < kLanes; ++j) {
      const uint64_t p0 = (uint64_t)0xD2511F53u * c0[j], p1 = (uint64_t)0xCD9E8D57u * c2[j];
      c0[j] = (uint32_t)(p1 >> 32) ^ c1[j] ^ k0;
      c1[j] = (uint32_t)p1;
      c2[j] = (uint32_t)(p0 >> 32) ^ c3[j] ^ k1;
      c3[j] = (uint32_t)p0;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  uint32_t bits = 0;
  for (int j = 0; j < kLanes; ++j) bits |= (uint32_t)((((uint64_t)c1[j] << 32 | c0[j]) >> 11) < bound) << j;
  return (uint16_t)bits;
}

inline void green(int64_t key, uint64_t stream, uint64_t bound, int64_t n, uint16_t *bits) {
  for (int64_t first = 0; first < n; first += kLanes) {
    uint16_t group = green_group(key, stream, bound, (uint32_t)first);
    if (n - first < kLanes) group = (uint16_t)(group & ((1u << (n - first)) - 1));
    bits[first / kLanes] = group;
  }
}

}  // namespace
