// Which tokens a watermark makes likelier: token t is green if the upper 53 bits of a Philox number with the key, the
// ids before (folded into `stream`) and t in its counter are below `bound`.
#pragma once

#include "numeric.h"
#include "sampling.h"

namespace {

#if defined(TS_WORDS)  // an instruction set with products of the low halves of 64-bit lanes says so

// Philox of 16 tokens side by side, a word in the low half of each lane of W. The upper halves hold what they like: a
// product does not see them, and a shifted product has none.
TS_LANES uint16_t green_group(int64_t key, uint64_t stream, uint64_t bound, uint32_t first) {
  constexpr int kVectors = kLanes / TS_WORDS;
  W c0[kVectors], c1[kVectors], c2[kVectors], c3[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    c0[v] = word(0);
    c1[v] = words_from(first + (uint32_t)(v * TS_WORDS));
    c2[v] = word(stream & 0xffffffffu);
    c3[v] = word(stream >> 32);
  }
  uint32_t k0 = (uint32_t)key, k1 = (uint32_t)((uint64_t)key >> 32);
  const W m0 = word(0xD2511F53u), m1 = word(0xCD9E8D57u);
  for (int round = 0; round < 10; ++round) {
    const W w0 = word(k0), w1 = word(k1);
    for (int v = 0; v < kVectors; ++v) {
      const W p0 = product(c0[v], m0), p1 = product(c2[v], m1);
      c0[v] = differ(differ(upper(p1), c1[v]), w0);
      c1[v] = p1;
      c2[v] = differ(differ(upper(p0), c3[v]), w1);
      c3[v] = p0;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  uint32_t bits = 0;
  for (int v = 0; v < kVectors; ++v) bits |= below_bound(c0[v], c1[v], bound) << (v * TS_WORDS);
  return (uint16_t)bits;
}

#else

// Philox of 16 tokens side by side.
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

#endif

inline void green(int64_t key, uint64_t stream, uint64_t bound, int64_t n, uint16_t *bits) {
  for (int64_t first = 0; first < n; first += kLanes) {
    uint16_t group = green_group(key, stream, bound, (uint32_t)first);
    if (n - first < kLanes) group = (uint16_t)(group & ((1u << (n - first)) - 1));
    bits[first / kLanes] = group;
  }
}

}  // namespace
