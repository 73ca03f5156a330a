// AVX2: both sides widened to 16 bits and multiplied by vpmaddwd, which is exact; vpmaddubsw on the bytes would
// saturate at 255 * 127 * 2. Intrinsics only, no inline function of the standard library, as in sampling_avx2.cpp.
#include <immintrin.h>
#include <string.h>

#include "int8_plain.h"

#if defined(_MSC_VER)
#define TS_INLINE __forceinline
#else
#define TS_INLINE inline __attribute__((always_inline))
#endif

namespace {

typedef __m256 Floats;
constexpr int kLanes = 8, kTileChannels = 8;
constexpr uint8_t kFlip = 0;

TS_INLINE Floats all(float x) { return _mm256_set1_ps(x); }
TS_INLINE Floats floats(const float *at) { return _mm256_loadu_ps(at); }
TS_INLINE void put(float *at, Floats x) { _mm256_storeu_ps(at, x); }
TS_INLINE Floats plus(Floats a, Floats b) { return _mm256_add_ps(a, b); }
TS_INLINE Floats minus(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
TS_INLINE Floats times(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
TS_INLINE Floats over(Floats a, Floats b) { return _mm256_div_ps(a, b); }
TS_INLINE Floats negated(Floats x) { return _mm256_xor_ps(x, all(-0.0f)); }
TS_INLINE Floats magnitude(Floats x) { return _mm256_andnot_ps(all(-0.0f), x); }
TS_INLINE Floats nearest(Floats x) { return minus(plus(x, all(kRoundFloat)), all(kRoundFloat)); }
// A NaN passes through both: they return their second operand then.
TS_INLINE Floats clamped(Floats x, float limit) { return _mm256_min_ps(all(limit), _mm256_max_ps(all(-limit), x)); }
TS_INLINE Floats where_negative(Floats x, Floats yes, Floats no) {
  return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ));
}
TS_INLINE Floats power_of_two(Floats n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvttps_epi32(n), _mm256_set1_epi32(127)), 23));
}

TS_INLINE Floats load(const void *x, int64_t i, int32_t dtype) {
  if (dtype == TS_F32) return _mm256_loadu_ps((const float *)x + i);
  const __m128i half = _mm_loadu_si128((const __m128i *)((const uint16_t *)x + i));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

TS_INLINE void store(void *out, int64_t at, int32_t dtype, Floats y) {
  if (dtype == TS_F32) return put((float *)out + at, y);
  const __m256i bits = _mm256_castps_si256(y);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i half = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
  const __m256i unordered = _mm256_castps_si256(_mm256_cmp_ps(y, y, _CMP_UNORD_Q));
  half = _mm256_blendv_epi8(half, _mm256_set1_epi32(0x7fc0), unordered);
  const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  _mm_storeu_si128((__m128i *)((uint16_t *)out + at), packed);
}

// Eight 32-bit values, each in [0, 255], as bytes.
void store_bytes(uint8_t *at, __m256i v) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  _mm_storel_epi64((__m128i *)at, _mm_packus_epi16(words, words));
}

int row_range(const void *x, int64_t k, int32_t dtype, float *lowest, float *highest) {
  const __m256i exponent = _mm256_set1_epi32(0x7f800000);
  __m256 low = _mm256_set1_ps(*lowest), high = _mm256_set1_ps(*highest);
  __m256i bad = _mm256_setzero_si256();
  int64_t i = 0;
  for (; i + 8 <= k; i += 8) {
    const __m256 v = load(x, i, dtype);
    bad = _mm256_or_si256(bad, _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_castps_si256(v), exponent), exponent));
    low = _mm256_min_ps(v, low);
    high = _mm256_max_ps(v, high);
  }
  float lows[8], highs[8], least = *lowest, most = *highest;
  _mm256_storeu_ps(lows, low);
  _mm256_storeu_ps(highs, high);
  for (int lane = 0; lane < 8; ++lane) {
    least = lows[lane] < least ? lows[lane] : least;
    most = highs[lane] > most ? highs[lane] : most;
  }
  const char *rest = (const char *)x + i * (dtype == TS_F32 ? 4 : 2);
  const int finite = plain_row_range(rest, k - i, dtype, &least, &most) & _mm256_testz_si256(bad, bad);
  *lowest = least;
  *highest = most;
  return finite;
}

void quantize(const void *x, int64_t k, int32_t dtype, float inverse, int32_t zero_point, uint8_t *q, int64_t stride) {
  const __m256 factor = _mm256_set1_ps(inverse), limit = _mm256_set1_ps(kStaticLimit), under = _mm256_set1_ps(-kStaticLimit);
  const __m256i zero = _mm256_set1_epi32(zero_point);
  for (int64_t i = 0; i < padded(k); i += 8) {
    uint8_t *at = q + i / kPanel * stride + i % kPanel;
    if (i + 8 <= k) {
      const __m256 steps = _mm256_min_ps(_mm256_max_ps(_mm256_mul_ps(load(x, i, dtype), factor), under), limit);
      store_bytes(at, _mm256_add_epi32(_mm256_cvttps_epi32(nearest(steps)), zero));  // its packs clamp
    } else {
      for (int64_t j = i; j < i + 8; ++j) at[j - i] = j < k ? ts_quantize_clamped(ts_load(x, j, dtype), inverse, zero_point) : 0;
    }
  }
}

void quantize12(const void *x, int64_t k, int32_t dtype, float inverse, uint8_t *q, int64_t stride) {
  const __m256 factor = _mm256_set1_ps(inverse);
  const __m256i most = _mm256_set1_epi32(kLargest12), least = _mm256_set1_epi32(-kLargest12), middle = _mm256_set1_epi32(2048);
  for (int64_t i = 0; i < padded(k); i += 8) {
    uint8_t *at = q + i / kPanel * stride + i % kPanel;
    if (i + 8 <= k) {
      const __m256i steps = _mm256_cvttps_epi32(nearest(_mm256_mul_ps(load(x, i, dtype), factor)));
      const __m256i v = _mm256_add_epi32(_mm256_min_epi32(_mm256_max_epi32(steps, least), most), middle);
      store_bytes(at, _mm256_srli_epi32(v, 6));
      store_bytes(at + kPanel, _mm256_and_si256(v, _mm256_set1_epi32(63)));
    } else {
      for (int64_t j = i; j < i + 8; ++j) {
        const int32_t value = j < k ? ts_quantize_12(ts_load(x, j, dtype), inverse) : 0;
        at[j - i] = (uint8_t)(value >> 6);
        at[j - i + kPanel] = (uint8_t)(value & 63);
      }
    }
  }
}

int64_t total(__m256i four) {
  int64_t lanes[4];
  _mm256_storeu_si256((__m256i *)lanes, four);
  return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

void moments(const uint8_t *q, int64_t k, int64_t stride, int64_t *sum, int64_t *squares) {
  const __m256i zero = _mm256_setzero_si256();
  __m256i sums = zero, wide = zero;
  for (int64_t i = 0; i < k; i += kPanel, q += stride) {
    __m256i square = zero;  // of int32: at most 4 * 2 * 255^2
    for (int part = 0; part < kPanel; part += 32) {
      const __m256i v = _mm256_loadu_si256((const __m256i *)(q + part));
      const __m256i low = _mm256_unpacklo_epi8(v, zero), high = _mm256_unpackhi_epi8(v, zero);
      sums = _mm256_add_epi64(sums, _mm256_sad_epu8(v, zero));
      square = _mm256_add_epi32(square, _mm256_add_epi32(_mm256_madd_epi16(low, low), _mm256_madd_epi16(high, high)));
    }
    wide = _mm256_add_epi64(wide, _mm256_add_epi64(_mm256_unpacklo_epi32(square, zero), _mm256_unpackhi_epi32(square, zero)));
  }
  *sum = total(sums), *squares = total(wide);
}

// Up to four rows against eight channels; every lane of a sum holds two of a channel's four products a step.
template <int M>
void tile(const uint8_t *a, int64_t stride, const int8_t *w, int64_t steps, int32_t *c) {
  __m256i left[M], right[M];
#pragma GCC unroll 4
  for (int i = 0; i < M; ++i) left[i] = right[i] = _mm256_setzero_si256();
  for (int64_t step = 0; step < steps; ++step, w += 4 * kPanel) {
    const __m256i v0 = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)w));
    const __m256i v1 = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w + 16)));
    const uint8_t *four = a + step / 16 * stride + step % 16 * 4;
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i) {
      int32_t bits;
      memcpy(&bits, four + i * kPanel, 4);
      const __m256i u = _mm256_cvtepu8_epi16(_mm_set1_epi32(bits));
      left[i] = _mm256_add_epi32(left[i], _mm256_madd_epi16(u, v0));
      right[i] = _mm256_add_epi32(right[i], _mm256_madd_epi16(u, v1));
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < M; ++i) {
    const __m256i sums = _mm256_permute4x64_epi64(_mm256_hadd_epi32(left[i], right[i]), 0xd8);
    _mm256_storeu_si256((__m256i *)(c + i * kPanel), sums);
  }
}

__m256i integers(const int32_t *at) { return _mm256_loadu_si256((const __m256i *)at); }

TS_INLINE Floats sum8(const int32_t *c, const int32_t *weight_sum, int32_t zero) {
  return _mm256_cvtepi32_ps(_mm256_sub_epi32(integers(c), _mm256_mullo_epi32(_mm256_set1_epi32(zero), integers(weight_sum))));
}

TS_INLINE Floats sum12(const int32_t *upper, const int32_t *weight_sum, int wide) {
  const __m256i high = integers(upper), low = integers(upper + kPanel), weights = integers(weight_sum);
  if (!wide) {
    const __m256i both = _mm256_add_epi32(_mm256_slli_epi32(high, 6), low);
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(both, _mm256_slli_epi32(weights, 11)));
  }
  const Floats centred = _mm256_cvtepi32_ps(_mm256_sub_epi32(high, _mm256_slli_epi32(weights, 5)));
  return plus(times(centred, all(64.0f)), _mm256_cvtepi32_ps(low));
}

const TsTail &rest12(const TsTail &tail) { return tail; }

}  // namespace

#include "int8_lanes.h"

extern const TsInt8Kernels ts_int8_avx2 = {
    "avx2", 4, 4, 0, nullptr, nullptr, row_range, quantize, quantize12, nothing, nothing_either, dots, finish, finish12,
    add_group12, finish_groups, moments};
