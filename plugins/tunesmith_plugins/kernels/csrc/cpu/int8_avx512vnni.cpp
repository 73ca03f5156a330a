// AVX-512 with VNNI. Intrinsics only, no inline function of the standard library, as in sampling_avx512.cpp.
#include "int8_avx512vnni.h"

#include <immintrin.h>

#include "int8_math.h"
#include "warm.h"

namespace {

__mmask16 first(int64_t count) { return count >= 16 ? (__mmask16)0xffff : count <= 0 ? (__mmask16)0 : (__mmask16)((1u << count) - 1); }

__m512 load(const void *x, int64_t i, int32_t dtype, __mmask16 here) {
  if (dtype == TS_F32) return _mm512_maskz_loadu_ps(here, (const float *)x + i);
  const __m256i half = _mm256_maskz_loadu_epi16(here, (const uint16_t *)x + i);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

void store(void *out, int64_t at, int32_t dtype, __mmask16 here, __m512 y) {
  if (dtype == TS_F32) {
    _mm512_mask_storeu_ps((float *)out + at, here, y);
    return;
  }
  const __m512i bits = _mm512_castps_si512(y);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i half = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
  half = _mm512_mask_mov_epi32(half, _mm512_cmp_ps_mask(y, y, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
  _mm256_mask_storeu_epi16((uint16_t *)out + at, here, _mm512_cvtepi32_epi16(half));
}

__m512 nearest(__m512 v) {
  const __m512 magic = _mm512_set1_ps(kRoundFloat);
  return _mm512_sub_ps(_mm512_add_ps(v, magic), magic);
}

__m512 exp_of(__m512 x) {
  // A NaN passes through both: they return their second operand then.
  x = _mm512_min_ps(_mm512_set1_ps(kExpLimit), _mm512_max_ps(_mm512_set1_ps(-kExpLimit), x));
  const __m512 n = nearest(_mm512_mul_ps(x, _mm512_set1_ps(kLog2EFloat)));
  const __m512 r = _mm512_sub_ps(_mm512_sub_ps(x, _mm512_mul_ps(n, _mm512_set1_ps(kLn2HighFloat))),
                                 _mm512_mul_ps(n, _mm512_set1_ps(kLn2LowFloat)));
  __m512 p = _mm512_set1_ps(kExpLeadFloat);
#define TS_STEP(c) p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(c));
  TS_EXP_FLOAT(TS_STEP)
#undef TS_STEP
  const __m512i power = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvttps_epi32(n), _mm512_set1_epi32(127)), 23);
  return _mm512_mul_ps(p, _mm512_castsi512_ps(power));
}

__m512 sigmoid(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 minus = _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(x), _mm512_set1_epi32((int)0x80000000u)));
  return _mm512_div_ps(one, _mm512_add_ps(one, exp_of(minus)));
}

__m512 activate(__m512 x, int32_t activation) {
  const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
  switch (activation) {
    case TS_RELU:
      return _mm512_mask_mov_ps(x, negative, _mm512_setzero_ps());
    case TS_SILU:
      return _mm512_mul_ps(x, sigmoid(x));
    case TS_GELU_TANH: {
      const __m512 cubic =
          _mm512_add_ps(x, _mm512_mul_ps(_mm512_mul_ps(_mm512_mul_ps(x, x), x), _mm512_set1_ps(kCubic)));
      return _mm512_mul_ps(x, sigmoid(_mm512_mul_ps(cubic, _mm512_set1_ps(kTwiceRootTwoOverPi))));
    }
    case TS_GELU: {
      const __m512 one = _mm512_set1_ps(1.0f), z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(kRootHalf));
      const __m512 t = _mm512_div_ps(one, _mm512_add_ps(one, _mm512_mul_ps(z, _mm512_set1_ps(kErfP))));
      __m512 p = _mm512_set1_ps(kErfLead);
#define TS_STEP(c) p = _mm512_add_ps(_mm512_mul_ps(p, t), _mm512_set1_ps(c));
      TS_ERF_FLOAT(TS_STEP)
#undef TS_STEP
      const __m512 square = _mm512_mul_ps(z, z);
      const __m512 minus = _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(square), _mm512_set1_epi32((int)0x80000000u)));
      const __m512 tail = _mm512_mul_ps(_mm512_mul_ps(p, t), exp_of(minus));
      const __m512 half = _mm512_mul_ps(x, _mm512_set1_ps(0.5f));
      return _mm512_mask_mul_ps(_mm512_mul_ps(half, _mm512_sub_ps(_mm512_set1_ps(2.0f), tail)), negative, half, tail);
    }
    default:
      return x;
  }
}

void nothing(int) {}
void nothing_either() {}

// acc += the products of four u8 and four s8 in every lane. Written as assembly because gcc copies the accumulators
// of the intrinsic around in unrolled loops, which costs half of the speed. (Not vpdpbusds, which saturates.)
inline __attribute__((always_inline)) void dot4(__m512i &acc, __m512i a, __m512i w) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(w));
}

inline __attribute__((always_inline)) __m512i four(const uint8_t *a) {
  int32_t bits;
  __builtin_memcpy(&bits, a, 4);
  return _mm512_set1_epi32(bits);
}

// Asks for weights of the next panel while a tile multiplies. (Not for the lines of its results, as AMX does: that made it slower.)
struct Fetch {
  const int8_t *weights;
  int lines;

  void chunk() {
    for (int line = 0; line < lines; ++line, weights += 64) _mm_prefetch((const char *)weights, _MM_HINT_T1);
  }
};

struct NoFetch {
  void chunk() {}
};

// M rows against a panel; Split partial sums hide the latency of few rows.
template <int M, int Split, typename Fetching = NoFetch>
inline __attribute__((always_inline)) void tile(const uint8_t *a, int64_t stride, const int8_t *w, int64_t steps, int32_t *c,
                                                Fetching fetch = {}) {
  const int64_t ahead = ts_weights_ahead().tile;
  __m512i acc[Split][M][4];
#pragma GCC unroll 8
  for (int s = 0; s < Split; ++s)
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) acc[s][i][j] = _mm512_setzero_si512();
  for (int64_t chunk = steps / 16; chunk > 0; --chunk, a += stride) {
    fetch.chunk();
    for (int step = 0; step < 16; step += Split, w += Split * 256) {
#pragma GCC unroll 8
      for (int s = 0; s < Split; ++s) {
        __m512i v[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          v[j] = _mm512_loadu_si512(w + s * 256 + j * 64);
          _mm_prefetch((const char *)(w + s * 256 + j * 64 + ahead), _MM_HINT_T0);
        }
#pragma GCC unroll 8
        for (int i = 0; i < M; ++i) {
          const __m512i u = four(a + i * kPanel + (step + s) * 4);
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j) dot4(acc[s][i][j], u, v[j]);
        }
      }
    }
  }
  for (int64_t step = 0; step < steps % 16; ++step, w += 256) {
    __m512i v[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) v[j] = _mm512_loadu_si512(w + j * 64);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      const __m512i u = four(a + i * kPanel + step * 4);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) dot4(acc[0][i][j], u, v[j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      __m512i sum = acc[0][i][j];
#pragma GCC unroll 8
      for (int s = 1; s < Split; ++s) sum = _mm512_add_epi32(sum, acc[s][i][j]);
      _mm512_storeu_si512(c + i * kPanel + j * 16, sum);
    }
}

constexpr int kMostRows = 6;   // what 32 registers hold the sums of

void dots(const uint8_t *a, const uint8_t *, int64_t stride, int m, const int8_t *panel, int64_t steps, int32_t *c) {
  switch (m) {
    case 1:
      return tile<1, 4>(a, stride, panel, steps, c);
    case 2:
      return tile<2, 2>(a, stride, panel, steps, c);
    case 3:
      return tile<3, 2>(a, stride, panel, steps, c);
    case 4:
      return tile<4, 1>(a, stride, panel, steps, c);
    case 5:
      return tile<5, 1>(a, stride, panel, steps, c);
    default:
      return tile<kMostRows, 1>(a, stride, panel, steps, c);
  }
}

constexpr int kRowsAhead = 24;  // with fewer a panel is worked on for no longer than the next one takes to come

void dots_ahead(const uint8_t *a, const uint8_t *a_next, int64_t stride, int m, const int8_t *panel, int64_t steps, int32_t *c,
                const TsAhead &ahead) {
  if (m < kMostRows) return dots(a, a_next, stride, m, panel, steps, c);
  tile<kMostRows, 1>(a, stride, panel, steps, c, Fetch{ahead.weights, ahead.lines});
}

// One row against several panels side by side, which memory delivers faster than one after the other: the processor itself
// asks for what comes next in each of so many pages.
template <int Panels>
inline __attribute__((always_inline)) void side(const uint8_t *a, int64_t stride, const int8_t *w, int64_t panel_bytes, int64_t steps, int32_t *c) {
  const int64_t ahead = ts_weights_ahead().side;
  __m512i acc[Panels][4];
#pragma GCC unroll 4
  for (int p = 0; p < Panels; ++p)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) acc[p][j] = _mm512_setzero_si512();
  for (int64_t chunk = (steps + 15) / 16; chunk > 0; --chunk, a += stride) {  // behind the last step both are padded
    for (int step = 0; step < 16; ++step, w += 256) {
      const __m512i u = four(a + step * 4);
#pragma GCC unroll 4
      for (int p = 0; p < Panels; ++p) {
        const int8_t *at = w + p * panel_bytes;
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          _mm_prefetch((const char *)(at + j * 64 + ahead), _MM_HINT_T0);
          dot4(acc[p][j], u, _mm512_loadu_si512(at + j * 64));
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < Panels; ++p)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) _mm512_storeu_si512(c + p * kPanel + j * 16, acc[p][j]);
}

TS_APART void few_side(const uint8_t *a, int64_t stride, const int8_t *panel, int64_t panel_bytes, int count, int64_t steps, int32_t *c) {
  if (count == 3) return side<3>(a, stride, panel, panel_bytes, steps, c);
  if (count == 2) return side<2>(a, stride, panel, panel_bytes, steps, c);
  tile<1, 4>(a, stride, panel, steps, c);
}

TS_APART void dots_side(const uint8_t *a, int64_t stride, const int8_t *panel, int64_t panel_bytes, int count, int64_t steps, int32_t *c) {
  if (count < kSideBySide) return few_side(a, stride, panel, panel_bytes, count, steps, c);
  side<kSideBySide>(a, stride, panel, panel_bytes, steps, c);
}

// What all epilogues do with a row: y(i, part) gives 16 columns before the bias.
template <typename Value>
inline __attribute__((always_inline)) void each_result(int m, const TsTail &given, Value value) {
  const TsTail tail = given;  // in registers: for all the compiler knows a store may change what is given
  for (int part = 0; part < 4; ++part) {
    const __mmask16 here = first(tail.columns - part * 16);
    if (!here) return;
    const __m512 bias = tail.bias ? _mm512_maskz_loadu_ps(here, tail.bias + part * 16) : _mm512_setzero_ps();
    for (int i = 0; i < m; ++i) {
      __m512 y = value(i, part, here);
      if (tail.bias) y = _mm512_add_ps(y, bias);
      if (tail.activation) y = activate(y, tail.activation);
      const int64_t at = i * tail.out_stride + part * 16;
      if (tail.multiply) y = _mm512_mul_ps(y, load(tail.multiply, at, tail.dtype, here));
      if (tail.residual) y = _mm512_add_ps(y, load(tail.residual, at, tail.dtype, here));
      store(tail.out, at, tail.dtype, here, y);
    }
  }
}

inline __attribute__((always_inline)) __m512 sum12(const int32_t *upper, __m512i weights, int wide) {
  const __m512i high = _mm512_loadu_si512(upper), low = _mm512_loadu_si512(upper + kPanel);
  if (!wide) {
    const __m512i both = _mm512_add_epi32(_mm512_slli_epi32(high, 6), low);
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(both, _mm512_slli_epi32(weights, 11)));
  }
  const __m512 centred = _mm512_cvtepi32_ps(_mm512_sub_epi32(high, _mm512_slli_epi32(weights, 5)));
  return _mm512_add_ps(_mm512_mul_ps(centred, _mm512_set1_ps(64.0f)), _mm512_cvtepi32_ps(low));
}

}  // namespace

namespace {

template <int Type>
inline __attribute__((always_inline)) int row_range(const void *x, int64_t k, float *lowest, float *highest) {
  const __m512 zero = _mm512_setzero_ps();
  __m512 low = _mm512_set1_ps(*lowest), high = _mm512_set1_ps(*highest), low1 = low, high1 = high, bad = zero, bad1 = zero;
  int64_t i = 0;
  for (; i + 32 <= k; i += 32) {
    const __m512 v = load(x, i, Type, 0xffff), u = load(x, i + 16, Type, 0xffff);
    bad = _mm512_fmadd_ps(v, zero, bad);  // 0 times what is not finite is NaN, and stays so
    bad1 = _mm512_fmadd_ps(u, zero, bad1);
    low = _mm512_min_ps(v, low);
    high = _mm512_max_ps(v, high);
    low1 = _mm512_min_ps(u, low1);
    high1 = _mm512_max_ps(u, high1);
  }
  for (; i < k; i += 16) {
    const __m512 v = load(x, i, Type, first(k - i));  // the range holds 0 anyway
    bad = _mm512_fmadd_ps(v, zero, bad);
    low = _mm512_min_ps(v, low);
    high = _mm512_max_ps(v, high);
  }
  *lowest = _mm512_reduce_min_ps(_mm512_min_ps(low, low1));
  *highest = _mm512_reduce_max_ps(_mm512_max_ps(high, high1));
  return _mm512_cmp_ps_mask(bad, bad1, _CMP_UNORD_Q) == 0;
}

// The codes of 64 numbers.
template <int Type, bool Whole>
inline __attribute__((always_inline)) __m512i codes(const void *x, int64_t i, __mmask64 here, __m512 factor, __m512i zero) {
  const __m512 limit = _mm512_set1_ps(kStaticLimit);
  __m512i v[4];
#pragma GCC unroll 4
  for (int part = 0; part < 4; ++part) {
    const __m512 steps = _mm512_mul_ps(load(x, i + part * 16, Type, Whole ? (__mmask16)0xffff : (__mmask16)(here >> (part * 16))), factor);
    // What is far below becomes the least integer, which no zero point takes out of range.
    v[part] = _mm512_add_epi32(_mm512_cvt_roundps_epi32(_mm512_min_ps(steps, limit), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), zero);
  }
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, _mm512_packus_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3])));
}

template <int Type>
inline __attribute__((always_inline)) void quantize(const void *x, int64_t k, __m512 factor, __m512i zero, uint8_t *q, int64_t stride) {
  int64_t i = 0;
  for (; i + 64 <= k; i += 64, q += stride) _mm512_storeu_si512(q, codes<Type, true>(x, i, 0, factor, zero));
  if (i == k) return;
  const __mmask64 here = ((__mmask64)1 << (k - i)) - 1;
  _mm512_storeu_si512(q, _mm512_maskz_mov_epi8(here, codes<Type, false>(x, i, here, factor, zero)));
}

}  // namespace

// What is usual comes first in these functions, where ts_int8_warm_code() asks for it.
int ts_avx512_row_range(const void *x, int64_t k, int32_t dtype, float *lowest, float *highest) {
  if (__builtin_expect(dtype == TS_F32, 1)) return row_range<TS_F32>(x, k, lowest, highest);
  return row_range<TS_BF16>(x, k, lowest, highest);
}

void ts_avx512_quantize(const void *x, int64_t k, int32_t dtype, float inverse, int32_t zero_point, uint8_t *q, int64_t stride) {
  const __m512 factor = _mm512_set1_ps(inverse);
  const __m512i zero = _mm512_set1_epi32(zero_point);
  if (__builtin_expect(dtype == TS_F32, 1)) return quantize<TS_F32>(x, k, factor, zero, q, stride);
  quantize<TS_BF16>(x, k, factor, zero, q, stride);
}

void ts_avx512_quantize12(const void *x, int64_t k, int32_t dtype, float inverse, uint8_t *q, int64_t stride) {
  const __m512 factor = _mm512_set1_ps(inverse);
  const __m512i most = _mm512_set1_epi32(kLargest12), least = _mm512_set1_epi32(-kLargest12), middle = _mm512_set1_epi32(2048);
  const __m512i low = _mm512_set1_epi32(63);
  for (int64_t i = 0; i < k; i += 64, q += stride) {
    for (int part = 0; part < 4; ++part) {
      const __mmask16 here = first(k - i - part * 16);
      const __m512 steps = nearest(_mm512_mul_ps(load(x, i + part * 16, dtype, here), factor));
      __m512i v = _mm512_min_epi32(_mm512_max_epi32(_mm512_cvttps_epi32(steps), least), most);
      v = _mm512_maskz_add_epi32(here, v, middle);
      _mm_storeu_si128((__m128i *)(q + part * 16), _mm512_cvtepi32_epi8(_mm512_srli_epi32(v, 6)));
      _mm_storeu_si128((__m128i *)(q + kPanel + part * 16), _mm512_cvtepi32_epi8(_mm512_and_si512(v, low)));
    }
  }
}

namespace {

// Results of some rows of a whole panel with nothing fused but a bias; false: a sum of weights is too large. A zero point z times such a sum s
// is z * (s & 127) + 128 z * (s >> 7): two products of 16 bits, which one instruction adds to the dot product.
template <bool Bias>
inline __attribute__((always_inline)) bool plain_rows(const int32_t *c, int m, const float *row_scale, const int32_t *zero_point,
                                                      const TsTail &given) {
  const TsTail tail = given;
  __m512 scales[4], biases[4];
  __m512i parts[4];
  __mmask16 large = 0;
#pragma GCC unroll 4
  for (int part = 0; part < 4; ++part) {
    const __m512i sums = _mm512_loadu_si512(tail.sum + part * 16), minus = _mm512_sub_epi32(_mm512_setzero_si512(), sums);
    parts[part] = _mm512_or_si512(_mm512_and_si512(minus, _mm512_set1_epi32(127)), _mm512_slli_epi32(_mm512_srai_epi32(minus, 7), 16));
    large = (__mmask16)(large | _mm512_cmpge_epi32_mask(_mm512_abs_epi32(sums), _mm512_set1_epi32(1 << 22)));
    scales[part] = _mm512_loadu_ps(tail.scale + part * 16);
    biases[part] = Bias ? _mm512_loadu_ps(tail.bias + part * 16) : scales[part];
  }
  if (large) return false;
  for (int i = 0; i < m; ++i, c += kPanel) {
    const __m512i zero = _mm512_set1_epi32(zero_point[i] | zero_point[i] << 23);
    const __m512 scale = _mm512_set1_ps(row_scale[i]);
#pragma GCC unroll 4
    for (int part = 0; part < 4; ++part) {
      const __m512i dot = _mm512_dpwssd_epi32(_mm512_loadu_si512(c + part * 16), zero, parts[part]);
      const __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(dot), _mm512_mul_ps(scale, scales[part]));
      store(tail.out, i * tail.out_stride + part * 16, tail.dtype, 0xffff, Bias ? _mm512_add_ps(y, biases[part]) : y);
    }
  }
  return true;
}

TS_APART void any_rows(const int32_t *c, int m, const float *row_scale, const int32_t *zero_point, const TsTail &tail) {
  __m512 scales[4];
  __m512i sums[4];
  for (int part = 0; part < 4; ++part) {
    const __mmask16 here = first(tail.columns - part * 16);
    scales[part] = _mm512_maskz_loadu_ps(here, tail.scale + part * 16);
    sums[part] = _mm512_maskz_loadu_epi32(here, tail.sum + part * 16);
  }
  each_result(m, tail, [&](int i, int part, __mmask16) {
    const __m512i offset = _mm512_mullo_epi32(_mm512_set1_epi32(zero_point[i]), sums[part]);
    const __m512i dot = _mm512_sub_epi32(_mm512_loadu_si512(c + i * kPanel + part * 16), offset);
    return _mm512_mul_ps(_mm512_cvtepi32_ps(dot), _mm512_mul_ps(_mm512_set1_ps(row_scale[i]), scales[part]));
  });
}

}  // namespace

void ts_avx512_finish(const int32_t *c, int m, const float *row_scale, const int32_t *zero_point, const TsTail &tail) {
  const bool plain = tail.columns == kPanel && !tail.activation && !tail.multiply && !tail.residual;
  if (__builtin_expect(plain, 1) &&
      (__builtin_expect(tail.bias != nullptr, 1) ? plain_rows<true>(c, m, row_scale, zero_point, tail)
                                                 : plain_rows<false>(c, m, row_scale, zero_point, tail)))
    return;
  any_rows(c, m, row_scale, zero_point, tail);
}

void ts_avx512_finish12(const int32_t *c, int m, const float *row_scale, int wide, const TsTail &tail) {
  each_result(m, tail, [&](int i, int part, __mmask16 here) {
    const __m512i sums = _mm512_maskz_loadu_epi32(here, tail.sum + part * 16);
    const __m512 scales = _mm512_maskz_loadu_ps(here, tail.scale + part * 16);
    const __m512 sum = sum12(c + 2 * i * kPanel + part * 16, sums, wide);
    return _mm512_mul_ps(sum, _mm512_mul_ps(_mm512_set1_ps(row_scale[i]), scales));
  });
}

void ts_avx512_add_group12(const int32_t *c, int m, const TsTail &tail, float *y) {
  for (int part = 0; part < 4; ++part) {
    const __mmask16 here = first(tail.columns - part * 16);
    const __m512i sums = _mm512_maskz_loadu_epi32(here, tail.sum + part * 16);
    const __m512 scales = _mm512_maskz_loadu_ps(here, tail.scale + part * 16);
    for (int i = 0; i < m; ++i) {
      float *at = y + i * kPanel + part * 16;
      const __m512 product = _mm512_mul_ps(sum12(c + 2 * i * kPanel + part * 16, sums, 0), scales);
      _mm512_storeu_ps(at, _mm512_add_ps(_mm512_loadu_ps(at), product));
    }
  }
}

void ts_avx512_finish_groups(const float *y, int m, const float *row_scale, const TsTail &tail) {
  each_result(m, tail, [&](int i, int part, __mmask16) {
    return _mm512_mul_ps(_mm512_loadu_ps(y + i * kPanel + part * 16), _mm512_set1_ps(row_scale[i]));
  });
}

void ts_avx512_moments(const uint8_t *q, int64_t k, int64_t stride, int64_t *sum, int64_t *squares) {
  const __m512i zero = _mm512_setzero_si512();
  __m512i sums = zero, low = zero, high = zero;  // of int32: at most 2 * 255^2 a step, and 1028 steps
  for (int64_t i = 0; i < k; i += kPanel, q += stride) {
    const __m512i v = _mm512_loadu_si512(q), even = _mm512_unpacklo_epi8(v, zero), odd = _mm512_unpackhi_epi8(v, zero);
    sums = _mm512_add_epi64(sums, _mm512_sad_epu8(v, zero));
    low = _mm512_dpwssd_epi32(low, even, even);
    high = _mm512_dpwssd_epi32(high, odd, odd);
  }
  const __m512i both = _mm512_add_epi32(low, high);  // below 2^29
  const __m512i wide = _mm512_add_epi64(_mm512_and_si512(both, _mm512_set1_epi64(0xffffffff)), _mm512_srli_epi64(both, 32));
  *sum = _mm512_reduce_add_epi64(sums), *squares = _mm512_reduce_add_epi64(wide);
}

extern const TsInt8Kernels ts_int8_avx512vnni = {
    "avx512", kMostRows, kMostRows, 0, nullptr, nullptr, ts_avx512_row_range, ts_avx512_quantize, ts_avx512_quantize12, nothing,
    nothing_either, dots, ts_avx512_finish, ts_avx512_finish12, ts_avx512_add_group12, ts_avx512_finish_groups, ts_avx512_moments,
    dots_ahead, 0, dots_side, kRowsAhead};
