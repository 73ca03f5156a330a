// The arithmetic of attention over an int8 cache, one number at a time: the query in 12 bits, weights in 15 (value scales in
// them), sums of integers. Shared by the CPU and the CUDA library; int8_reference.py says the same in torch.
#pragma once

#include "int8_call.h"
#include "int8_math.h"

namespace {

constexpr int64_t kTokensAtOnce = 512;  // 32767 * 128 * 512 is below 2^31: so many products fit an int32 sum
constexpr float kLargestWeight = 32767.0f;
constexpr int kAttentionLanes = 8;  // token t adds to lane t % 8 of the total; lanes are joined in order

// A call, as ts_int8_attention_words takes it.
struct TsAttention {
  const float *q;
  float *out;
  int64_t batch, heads, queries, kv_heads, time, size;
  const int8_t *k;
  const float *k_scale;
  const int8_t *v;
  const float *v_scale;
  const float *mask;
  int64_t mask_batch, mask_head, mask_query;
  float scale;
  int64_t room;  // tokens from one head of the cache to the next
};

// What one query of a call looks at.
struct TsAttentionQuery {
  const float *x;
  float *out;
  const int8_t *k, *v;
  const float *k_scale, *v_scale, *added;  // added: of the mask, or null
};

TS_HD TsAttentionQuery ts_attention_query(const TsAttention &a, int64_t index) {
  const int64_t query = index % a.queries, head = index / a.queries % a.heads, row = index / a.queries / a.heads;
  const int64_t kv = row * a.kv_heads + head / (a.heads / a.kv_heads);
  return {a.q + index * a.size, a.out + index * a.size, a.k + kv * a.room * a.size, a.v + kv * a.room * a.size,
          a.k_scale + kv * a.room, a.v_scale + kv * a.room,
          a.mask ? a.mask + row * a.mask_batch + head * a.mask_head + query * a.mask_query : nullptr};
}

TS_HD bool ts_finite(float x) { return (float_to_bits(x) & 0x7f800000u) != 0x7f800000u; }

TS_HD int16_t ts_query_12(float x, float inverse) { return (int16_t)(ts_quantize_12(x, inverse) - 2048); }

TS_HD float ts_score(int32_t dot, float x_scale, float key_scale, float scale, const float *added, int64_t t) {
  const float score = (float)dot * (x_scale * key_scale) * scale;
  return added ? score + added[t] : score;
}

TS_HD float ts_attention_exp(float score, float most) {
  return score > -bits_to_float(0x7f800000u) ? ts_exp_float(score - most) : 0.0f;
}

TS_HD float ts_weight_step(float largest) {
  const float step = largest / kLargestWeight;
  return step < kSmallestScale ? kSmallestScale : step;
}

TS_HD int16_t ts_weight_15(float weight, float inverse) {
  const int32_t p = ts_round_float(weight * inverse);
  return (int16_t)(p > 32767 ? 32767 : p);
}

// Reads and checks a call.
inline int32_t ts_read_attention(const int64_t *words, int64_t count, TsFail fail, TsAttention *call) {
  if (!words || count != 19) return fail(TS_INVALID, "attention takes 19 words, not %lld", (long long)count);
  double scale;
  memcpy(&scale, words + 16, sizeof scale);
  const TsAttention a = {(const float *)words[0], (float *)words[1], words[2], words[3], words[4], words[5], words[6], words[7],
                         (const int8_t *)words[8], (const float *)words[9], (const int8_t *)words[10], (const float *)words[11],
                         (const float *)words[12], words[13], words[14], words[15], (float)scale, words[18]};
  if (a.batch < 0 || a.heads < 0 || a.queries < 0 || a.kv_heads < 1 || a.heads % a.kv_heads || a.time < 1 || a.size < 1 || a.size > TS_MAX_K_12)
    return fail(TS_INVALID, "attention needs whole groups of heads, at least one token and heads of 1 to %d values", TS_MAX_K_12);
  if (a.room < a.time) return fail(TS_INVALID, "a cache with room for %lld tokens a head cannot hold %lld", (long long)a.room, (long long)a.time);
  if (a.batch * a.heads * a.queries != 0 && (!a.q || !a.out || !a.k || !a.k_scale || !a.v || !a.v_scale))
    return fail(TS_INVALID, "attention needs q, k, v, their scales and out");
  *call = a;
  return TS_OK;
}

}  // namespace
