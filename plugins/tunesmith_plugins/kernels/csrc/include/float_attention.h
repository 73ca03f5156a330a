// A step of attention over a float32 cache: new tokens' keys and values, turned by their positions, go to the places that the
// cache has for them, and the new queries attend to all. attention_reference.py says the same in torch.
#pragma once

#include "int8_call.h"
#include "rotary.h"

namespace {

constexpr int64_t kFloatLanes = 16;    // of a product of query and key: number d adds to lane d % 16
constexpr int64_t kTokensABlock = 64;  // whose weighted values are summed in float32; blocks are summed in float64
constexpr int64_t kMostHeadSize = 4096;

// What a mask holds.
enum { kNoMask = 0, kAddedMask = 1, kSeenMask = 2 };  // nothing, float32 that are added to the scores, bytes that are 0 where nothing is seen

constexpr double kWorthSharingBytes = 4e6;  // of the cache; less is done by the calling thread

// Bytes of the cache that a call reads, those of each query apart, and whether it may be shared.
inline double ts_attention_bytes(int64_t cached_heads, int64_t queries, int64_t time, int64_t size) {
  return (double)cached_heads * (double)time * (double)size * 8 * (double)queries;
}
inline bool ts_attention_may_share(int64_t cached_heads, int64_t queries, int64_t time, int64_t size) {
  return ts_attention_bytes(cached_heads, queries, time, size) > kWorthSharingBytes;
}

// A call, as ts_float_attention_words takes it.
struct TsFloatAttention {
  const float *q;
  float *out;
  int64_t batch, heads, queries, kv_heads, time, size;
  int64_t q_row, q_head, q_token;        // strides
  const float *k, *v;                    // of the new tokens, or null: the cache has them already
  int64_t k_stride, v_stride;            // from one new token to the next
  float *keys, *values;
  int64_t keys_row, keys_head, values_row, values_head;  // strides of the cache, whose tokens lie behind one another
  const float *cos, *sin;                // (tables, size), or null
  int64_t tables;
  const void *mask;
  int64_t mask_kind, mask_row, mask_head, mask_query;
  float scale;
  int32_t threads;
};

// Reads and checks a call.
inline int32_t ts_read_float_attention(const int64_t *words, int64_t count, TsFail fail, TsFloatAttention *call) {
  if (!words || count != 31) return fail(TS_INVALID, "attention over floats takes 31 words, not %lld", (long long)count);
  double scale;
  memcpy(&scale, words + 29, sizeof scale);
  const TsFloatAttention a = {(const float *)words[0], (float *)words[1], words[2], words[3], words[4], words[5], words[6], words[7],
                              words[8], words[9], words[10],
                              (const float *)words[11], (const float *)words[12], words[13], words[14],
                              (float *)words[15], (float *)words[16], words[17], words[18], words[19], words[20],
                              (const float *)words[21], (const float *)words[22], words[23],
                              (const void *)words[24], words[25], words[26], words[27], words[28],
                              (float)scale, words[30] > 0 ? (int32_t)words[30] : 1};
  if (a.batch < 0 || a.heads < 0 || a.queries < 0 || a.kv_heads < 1 || a.heads % a.kv_heads || a.time < 1 || a.size < 1 || a.size > kMostHeadSize)
    return fail(TS_INVALID, "attention needs whole groups of heads, at least one token and heads of 1 to %d values", (int)kMostHeadSize);
  if (a.k && a.queries > a.time) return fail(TS_INVALID, "a cache of %lld tokens has no place for %lld new ones", (long long)a.time, (long long)a.queries);
  if (!a.cos != !a.sin || (a.cos && (a.size % 2 || a.tables < 1))) return fail(TS_INVALID, "rotary positions need cos, sin and heads of even size");
  if (a.mask_kind < kNoMask || a.mask_kind > kSeenMask || (a.mask_kind && !a.mask)) return fail(TS_INVALID, "a mask of kind %lld", (long long)a.mask_kind);
  if (a.batch * a.heads * a.queries != 0 && (!a.q || !a.out || !a.keys || !a.values || !a.k != !a.v))
    return fail(TS_INVALID, "attention needs q, out, keys and values, and of new keys and values both or none");
  *call = a;
  return TS_OK;
}

}  // namespace
