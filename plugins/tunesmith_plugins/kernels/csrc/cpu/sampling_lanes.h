// The loops of sampling.h in terms of 16 lanes. Included once by each sampling_ISA.cpp, after it has defined, in an
// unnamed namespace, the types F (16 floats), I (16 integers), M (a mask) and the operations on them. Everything here
// has internal linkage, so that no other unit can be given this copy.
#include <float.h>
#include <string.h>

#include "numeric.h"
#include "tunesmith.h"

// The versions of a loop for the types of logits, which are numbered from 0.
#define TS_BY_TYPE(loop) {loop<TS_F32>, loop<TS_BF16>, loop<TS_F16>}

// One copy of a function: code that is not in the caches costs more than a call.
#if defined(_MSC_VER) && !defined(__clang__)
#define TS_ONCE __declspec(noinline)
#elif defined(__clang__)
#define TS_ONCE __attribute__((noinline))
#else
#define TS_ONCE __attribute__((noinline, noclone))
#endif

namespace {

constexpr int kFlush = 16;  // blocks after which 32-bit sums are carried over: 16 * 16 * 2^21 stays below 2^32

template <int D>
TS_LANES F load(const char *x, int64_t group) {
  if constexpr (D == TS_F32) return load_f32((const float *)x + group * kLanes);
  if constexpr (D == TS_BF16) return load_bf16((const uint16_t *)x + group * kLanes);
  return load_f16((const uint16_t *)x + group * kLanes);
}

constexpr int64_t size_of(int dtype) { return dtype == TS_F32 ? 4 : 2; }

// The last block as floats, what is beyond the row at -inf: nothing is ever read past a row's end.
struct Tail {
  alignas(64) float x[kBlock];
  Tail(const TsRow &row, int64_t begin) {
    const int64_t size = row.n - begin;
    for (int64_t i = size; i < kBlock; ++i) x[i] = -HUGE_VALF;
    if (row.dtype == TS_F32) {
      memcpy(x, (const float *)row.x + begin, (size_t)size * sizeof(float));
      return;
    }
    const uint16_t *halves = (const uint16_t *)row.x + begin;
    for (int64_t i = 0; i < size; ++i) x[i] = row.dtype == TS_BF16 ? ts_bf16_to_float(halves[i]) : ts_f16_to_float(halves[i]);
  }
};

// Calls block(number, address, marks or null) for every block; D is the type behind the address. With several streams the
// blocks come from as many parts of the row in turn: of a row that is not in the caches more is under way at once.
template <int D, int kStreams, typename Block>
TS_LANES void over_blocks(const TsRow &row, Block block) {
  const int64_t whole = row.n / kBlock, part = kStreams == 1 || row.in_line ? 0 : whole / kStreams;
  const char *x = (const char *)row.x;
  for (int64_t i = 0; i < whole; ++i) {
    const int64_t b = i >= part * kStreams ? i : i % kStreams * part + i / kStreams;
    const uint16_t *marks = row.marks && row.flagged[b] ? row.marks + b * kBlockGroups : nullptr;
    block.template run<D>(b, x + b * kBlock * size_of(D), marks);
  }
  if (whole * kBlock < row.n) {
    const Tail tail(row, whole * kBlock);
    const uint16_t *marks = row.marks && row.flagged[whole] ? row.marks + whole * kBlockGroups : nullptr;
    block.template run<TS_F32>(whole, (const char *)tail.x, marks);
  }
}

template <int kStreams = 1, typename Block>
TS_LANES void over_row(const TsRow &row, Block block) {
  if (row.dtype == TS_F32) over_blocks<TS_F32, kStreams>(row, block);
  else if (row.dtype == TS_BF16) over_blocks<TS_BF16, kStreams>(row, block);
  else over_blocks<TS_F16, kStreams>(row, block);
}

constexpr int64_t kScanAheadInLine = 4096;  // elements, on processors that read rows so
TS_LANES int64_t ahead_of(const TsRow &row) { return row.in_line ? kScanAheadInLine : kScanAhead; }

struct Scan {
  int64_t ahead;
  float *lanes;
  F *best;
  M *unordered;
  template <int D>
  TS_LANES void run(int64_t b, const char *x, const uint16_t *marks) const {
#if defined(TS_BF16_BLOCK)  // an instruction set that compares 16 bits at a time says so
    if constexpr (D == TS_BF16) {
      for (int line = 0; line < kBlock * 2 / 64; ++line) prefetch((uintptr_t)x + 4 * ahead + 64 * line);
      const F m = block_of_bf16((const uint16_t *)x, marks, unordered);
      store_f32(lanes + b * kLanes, m);
      *best = max(m, *best);
      return;
    }
#endif
    const F nothing = set1(-HUGE_VALF);
    F m0 = nothing, m1 = nothing, m2 = nothing, m3 = nothing;
    M bad = no_lane();
#pragma GCC unroll 4
    for (int g = 0; g < kBlockGroups; g += 4) {
      for (int line = 0; line < size_of(D); ++line) prefetch((uintptr_t)x + (ahead + g * kLanes) * size_of(D) + 64 * line);
      F v0 = load<D>(x, g), v1 = load<D>(x, g + 1), v2 = load<D>(x, g + 2), v3 = load<D>(x, g + 3);
      bad = either(bad, either(unordered_lanes(v0, v1), unordered_lanes(v2, v3)));
      if (marks) {
        v0 = where(lanes_of(marks[g]), nothing, v0);
        v1 = where(lanes_of(marks[g + 1]), nothing, v1);
        v2 = where(lanes_of(marks[g + 2]), nothing, v2);
        v3 = where(lanes_of(marks[g + 3]), nothing, v3);
      }
      m0 = max(v0, m0);
      m1 = max(v1, m1);
      m2 = max(v2, m2);
      m3 = max(v3, m3);
    }
    const F m = max(max(m0, m1), max(m2, m3));
    store_f32(lanes + b * kLanes, m);
    *best = max(m, *best);
    *unordered = either(*unordered, bad);
  }
};

TS_LANES float largest(const F &v) {
  float values[kLanes], result = -HUGE_VALF;
  store_f32(values, v);
  for (float value : values) result = value > result ? value : result;
  return result;
}

template <int D>
TS_ONCE float scan(const TsRow *row, float *lanes, uint8_t *has_nan) {
  F best = set1(-HUGE_VALF);
  M unordered = no_lane();
  over_blocks<D, kScanStreams>(*row, Scan{ahead_of(*row), lanes, &best, &unordered});
  if (bits_of(unordered)) *has_nan = 1;
  return largest(best);
}

template <int D>
TS_LANES float one_of(const char *x, int64_t i) {
  if constexpr (D == TS_F32) return ((const float *)x)[i];
  if constexpr (D == TS_BF16) return ts_bf16_to_float(((const uint16_t *)x)[i]);
  return ts_f16_to_float(((const uint16_t *)x)[i]);
}

#if defined(_MSC_VER)
TS_LANES int lowest_bit(uint64_t word) {
  unsigned long place;
  _BitScanForward64(&place, word);
  return (int)place;
}
TS_LANES int bits_in(uint64_t word) { return (int)__popcnt64(word); }
#else
TS_LANES int lowest_bit(uint64_t word) { return __builtin_ctzll(word); }
TS_LANES int bits_in(uint64_t word) { return __builtin_popcountll(word); }
#endif

#if !defined(TS_WORD_OF)  // an instruction set that joins masks says so
TS_LANES uint64_t word_of(const M &a, const M &b, const M &c, const M &d) {
  return (uint64_t)bits_of(a) | (uint64_t)bits_of(b) << 16 | (uint64_t)bits_of(c) << 32 | (uint64_t)bits_of(d) << 48;
}
#endif

// While tokens are picked from a row that is in the caches, memory has nothing to do: with every block that is looked at some
// of the next row is asked for, from where the scan of this one, which asks for what lies behind it too, has stopped. Measured
// on AMD's processors only, and used there.
constexpr int kNextLines = 8;
template <int D>
TS_LANES uintptr_t next_of(const TsRow &row) {
  return row.next ? (uintptr_t)row.next + ahead_of(row) * size_of(D) : 0;
}

// Which of 64 tokens are chosen can rarely be foreseen, so two are written whether they are or not: only the count says.
template <bool Below>
struct Collect {
  F from, below;
  int32_t *ids;
  float *x;
  int64_t *count;
  uintptr_t *next;
  template <int D>
  TS_LANES void run(int64_t b, const char *source, const uint16_t *marks) const {
    int64_t n = *count;
    if (*next) {
      for (int line = 0; line < kNextLines; ++line) prefetch(*next + 64 * line);
      *next += 64 * kNextLines;
    }
    for (int g = 0; g < kBlockGroups; g += 4) {
      const auto chosen = [&](int k) {
        const F v = load<D>(source, g + k);
        M here = at_least(v, from);
        if constexpr (Below) here = both(here, less(v, below));
        return marks ? but_not(here, lanes_of(marks[g + k])) : here;
      };
      const uint64_t word = word_of(chosen(0), chosen(1), chosen(2), chosen(3));
      const auto write = [&](int64_t at, uint64_t left) {
        const int place = g * kLanes + lowest_bit(left | uint64_t(1) << 63);
        ids[at] = (int32_t)(b * kBlock) + place;
        x[at] = one_of<D>(source, place);
      };
      const uint64_t second = word & (word - 1);
      write(n, word);
      write(n + 1, second);
      int64_t at = n + 2;
      for (uint64_t left = second & (second - 1); left; left &= left - 1) write(at++, left);
      n += bits_in(word);
    }
    *count = n;
  }
};

// As over_blocks, but only for blocks with a lane whose largest value reaches `from`. Which ones do can rarely be foreseen
// either: 64 blocks are looked at before the first of them is read.
template <int D, typename Block>
TS_LANES void over_reaching(const TsRow &row, const float *lanes, const F &from, Block block) {
  const int64_t blocks = (row.n + kBlock - 1) / kBlock;
  const char *x = (const char *)row.x;
  for (int64_t first = 0; first < blocks; first += 64) {
    const int64_t end = blocks - first < 64 ? blocks : first + 64;
    uint64_t word = 0;
    for (int64_t b = first; b < end; ++b) {
      word |= (uint64_t)(bits_of(at_least(load_f32(lanes + b * kLanes), from)) != 0) << (b - first);
    }
    for (; word; word &= word - 1) {
      const int64_t b = first + lowest_bit(word);
      const uint16_t *marks = row.marks && row.flagged[b] ? row.marks + b * kBlockGroups : nullptr;
      if ((b + 1) * kBlock <= row.n) {
        block.template run<D>(b, x + b * kBlock * size_of(D), marks);
      } else {
        const Tail tail(row, b * kBlock);
        block.template run<TS_F32>(b, (const char *)tail.x, marks);
      }
    }
  }
}

template <int D>
TS_ONCE int64_t collect_between(const TsRow *row, const float *lanes, float from, float below, int32_t *ids, float *x) {
  int64_t count = 0;
  uintptr_t next = next_of<D>(*row);
  const Collect<true> block = {set1(from), set1(below), ids, x, &count, &next};
  over_reaching<D>(*row, lanes, block.from, block);
  return count;
}

template <int D>
TS_ONCE int64_t collect(const TsRow *row, const float *lanes, float from, float below, int32_t *ids, float *x) {
  if (below < HUGE_VALF) return collect_between<D>(row, lanes, from, below, ids, x);
  int64_t count = 0;
  uintptr_t next = next_of<D>(*row);
  const Collect<false> block = {set1(from), set1(below), ids, x, &count, &next};
  over_reaching<D>(*row, lanes, block.from, block);
  return count;
}

#if !defined(TS_POWERS)  // an instruction set that multiplies by powers of two says so, and may take a - b * c in one step
TS_LANES F less_exact(const F &a, const F &b, const F &c) { return sub(a, mul(b, c)); }  // where b * c is exact
TS_LANES F times_power(const F &p, const F &, const F &shifted) {
  return floats_of_bits(add_integers(bits_of_floats(p), shift_left_23(bits_of_floats(shifted))));
}
#endif

// exp * 2^kFraction of `kTogether` vectors at once, step by step: one vector's steps wait for each other. Coefficients times
// a power of two are rounded as they are without.
template <int kFraction = 0>
TS_LANES void exponentials(F *v) {
  constexpr float kScale = (float)(1 << kFraction);
  F shifted[kTogether], whole[kTogether], p[kTogether];
#define TS_TOGETHER for (int i = 0; i < kTogether; ++i)
  TS_TOGETHER v[i] = max(v[i], set1(kExpFloor));  // in this order: what is no number becomes the floor
  TS_TOGETHER shifted[i] = mul(v[i], set1(kLog2E));
  TS_TOGETHER shifted[i] = add(shifted[i], set1(kRoundFloat));
  TS_TOGETHER whole[i] = sub(shifted[i], set1(kRoundFloat));
  TS_TOGETHER v[i] = less_exact(v[i], whole[i], set1(kLn2Hi));
  TS_TOGETHER v[i] = sub(v[i], mul(whole[i], set1(kLn2Lo)));
  TS_TOGETHER p[i] = set1(TS_EXP_LEAD * kScale);
#define TS_STEP(c) TS_TOGETHER p[i] = add(mul(p[i], v[i]), set1((c) * kScale));
  TS_EXP_COEFFICIENTS(TS_STEP)
#undef TS_STEP
  TS_TOGETHER v[i] = times_power(p[i], whole[i], shifted[i]);
}

// What a row's values are divided by: nothing, one divisor that an instruction set may have a quicker way for, or any.
enum Divisors { kNone, kOne, kAny };

#if !defined(TS_QUOTIENT)  // an instruction set with a quicker way to the very quotient says so
struct Quotient {
  F by;
  TS_LANES Quotient(float divisor, float, float) : by(set1(divisor)) {}
  TS_LANES F of(const F &v) const { return div(v, by); }
};
TS_LANES bool has_quotient(float, float) { return true; }
#endif

struct Through {
  const float *divisors;
  int32_t count;
  float high, low;  // the reciprocal of the first, and what is missing
  explicit Through(const TsRow &row) : divisors(row.divisors), count(row.divisor_count), high(0), low(0) {
    if (!count) return;
    high = 1.0f / divisors[0];
    low = (float)(1.0 / (double)divisors[0] - (double)high);
  }
  template <int kDivide>
  TS_LANES void divide(F *v) const {
    if constexpr (kDivide == kOne) {
      const Quotient quotient(divisors[0], high, low);
      TS_TOGETHER v[i] = quotient.of(v[i]);
    }
    if constexpr (kDivide == kAny) {
      for (int32_t t = 0; t < count; ++t) TS_TOGETHER v[i] = div(v[i], set1(divisors[t]));
    }
  }
};

Divisors divisors_of(const TsRow &row, float max) {
  if (!row.divisor_count) return kNone;
  return row.divisor_count == 1 && has_quotient(row.divisors[0], max) ? kOne : kAny;
}

// A weight is e * 2^bits rounded. e = h + l with h the multiple of 2^-21 nearest to e: adding 4 leaves h 2^21 in the
// low bits of the sum, and adding 1.5 2^(23 - bits) to l does the same for l 2^bits, rounded to even as it should be.
struct Sums {
  I high, low;
};
constexpr uint32_t kHighBits = 0x40800000u;  // of 4.0f

inline float low_magic(int bits) { return bits_to_float((uint32_t)(127 + 23 - bits) << 23 | 0x400000u); }

TS_LANES void accumulate(Sums *sums, F *e, F magic) {
  F high[kTogether];
  TS_TOGETHER high[i] = add(e[i], set1(4.0f));
  TS_TOGETHER sums->high = add_integers(sums->high, bits_of_floats(high[i]));
  TS_TOGETHER high[i] = sub(high[i], set1(4.0f));
  TS_TOGETHER e[i] = sub(e[i], high[i]);
  TS_TOGETHER e[i] = add(e[i], magic);
  TS_TOGETHER sums->low = add_integers(sums->low, bits_of_floats(e[i]));
}

// The sum of what accumulate added to every lane `groups` times.
TS_LANES uint64_t total_of(const Sums &sums, int groups, float magic, int bits) {
  uint32_t high[kLanes], low[kLanes];
  store_integers(high, sums.high);
  store_integers(low, sums.low);
  uint64_t highs = 0;
  int64_t lows = 0;
  for (int j = 0; j < kLanes; ++j) {
    highs += (uint32_t)(high[j] - (uint32_t)groups * kHighBits);
    lows += (int32_t)(low[j] - (uint32_t)groups * float_to_bits(magic));
  }
  return (highs << (bits - 21)) + (uint64_t)lows;
}

#if !defined(TS_SUMS_OF)  // an instruction set with a quicker way to add up lanes says so
// The lanes of each added up, modulo 2^32.
TS_LANES void sums_of(const I &a, const I &b, const I &c, uint32_t *out) {
  uint32_t lanes[3][kLanes];
  store_integers(lanes[0], a);
  store_integers(lanes[1], b);
  store_integers(lanes[2], c);
  for (int k = 0; k < 3; ++k) {
    out[k] = 0;
    for (int j = 0; j < kLanes; ++j) out[k] += lanes[k][j];
  }
}
#endif

// The same for a block at most, where all lanes together were added to as often as those of `times` say: less than 2^32
// in both parts.
TS_LANES uint64_t block_of(const Sums &sums, const I &times, float magic, int bits) {
  uint32_t found[4];
  sums_of(sums.high, sums.low, times, found);
  const uint32_t high = found[0] - found[2] * kHighBits;
  const int32_t low = (int32_t)(found[1] - found[2] * float_to_bits(magic));
  return ((uint64_t)high << (bits - 21)) + (uint64_t)(int64_t)low;
}

#if !defined(TS_ADD_WHERE)  // an instruction set that adds under a mask says so
TS_LANES I add_where(const M &m, const I &sum, const I &x) {
  return add_integers(sum, bits_of_floats(keep(m, floats_of_bits(x))));
}
#endif

// Adds to `all`, and where `here` says so to `some`, counting there.
TS_LANES void accumulate_both(Sums *all, Sums *some, I *times, F *e, const M *here, F magic, I one) {
  F high[kTogether];
  TS_TOGETHER high[i] = add(e[i], set1(4.0f));
  TS_TOGETHER all->high = add_integers(all->high, bits_of_floats(high[i]));
  TS_TOGETHER some->high = add_where(here[i], some->high, bits_of_floats(high[i]));
  TS_TOGETHER *times = add_where(here[i], *times, one);
  TS_TOGETHER high[i] = sub(high[i], set1(4.0f));
  TS_TOGETHER e[i] = sub(e[i], high[i]);
  TS_TOGETHER e[i] = add(e[i], magic);
  TS_TOGETHER all->low = add_integers(all->low, bits_of_floats(e[i]));
  TS_TOGETHER some->low = add_where(here[i], some->low, bits_of_floats(e[i]));
}

// The sums of all tokens and, block by block, of those with x >= below; those with from <= x < below are listed.
template <int kDivide>
struct Split {
  Through through;
  float max, from, below;
  int bits;
  uint64_t *blocks, *some, *all;
  float *between;
  int64_t *ends;
  int64_t *count;
  Sums *sums;
  int *groups;
  template <int D>
  TS_LANES void run(int64_t b, const char *x, const uint16_t *marks) const {
    const F top = set1(max), low = set1(from), bound = set1(below), magic = set1(low_magic(bits));
    const I zero = zero_integers(), one = bits_of_floats(set1(bits_to_float(1)));
    Sums whole = *sums, above = {zero, zero};
    I times = zero;
    int64_t listed = *count;
    for (int g = 0; g < kBlockGroups; g += kTogether) {
      F v[kTogether];
      M here[kTogether];
      TS_TOGETHER v[i] = load<D>(x, g + i);
      through.template divide<kDivide>(v);
      TS_TOGETHER v[i] = sub(v[i], top);
      exponentials(v);
      if (marks) {
        TS_TOGETHER v[i] = keep(lanes_of((uint16_t)~marks[g + i]), v[i]);
      }
      TS_TOGETHER here[i] = at_least(load<D>(x, g + i), bound);  // again: masks are few, and do not last so long
      accumulate_both(&whole, &above, &times, v, here, magic, one);
      TS_TOGETHER {
        const F again = load<D>(x, g + i);
        M inside = both(at_least(again, low), less(again, bound));
        if (marks) inside = but_not(inside, lanes_of(marks[g + i]));
        const uint32_t chosen = bits_of(inside);
        squeeze(between + listed, inside, chosen, again);
        listed += __builtin_popcount(chosen);
      }
    }
    *count = ends[b] = listed;
    const uint64_t part = block_of(above, times, low_magic(bits), bits);
    blocks[b] = part;
    *some += part;
    *groups += kBlockGroups;
    if (*groups == kFlush * kBlockGroups) {
      *all += total_of(whole, *groups, low_magic(bits), bits);
      *groups = 0;
      whole.high = whole.low = zero;
    }
    *sums = whole;
  }
};

template <int kDivide>
uint64_t split_of(const TsRow *row, float max, int bits, float from, float below, uint64_t *blocks, float *between,
                  int64_t *ends, uint64_t *total) {
  uint64_t some = 0, all = 0;
  int64_t count = 0;
  int groups = 0;
  Sums sums = {zero_integers(), zero_integers()};
  over_row(*row, Split<kDivide>{Through(*row), max, from, below, bits, blocks, &some, &all, between, ends, &count, &sums, &groups});
  *total = all + total_of(sums, groups, low_magic(bits), bits);
  return some;
}

uint64_t split(const TsRow *row, float max, int bits, float from, float below, uint64_t *blocks, float *between, int64_t *ends,
               uint64_t *total) {
  const Divisors divisors = divisors_of(*row, max);
  if (divisors == kNone) return split_of<kNone>(row, max, bits, from, below, blocks, between, ends, total);
  if (divisors == kOne) return split_of<kOne>(row, max, bits, from, below, blocks, between, ends, total);
  return split_of<kAny>(row, max, bits, from, below, blocks, between, ends, total);
}

template <bool From, int kDivide>
struct Masses {
  Through through;
  float max, from;
  int bits;
  uint64_t *blocks;
  Sums *sums;
  int *groups;
  uint64_t *total;
  template <int D>
  TS_LANES void run(int64_t b, const char *x, const uint16_t *marks) const {
    const F top = set1(max), bound = set1(from), magic = set1(low_magic(bits));
    Sums sum = *sums;
    for (int g = 0; g < kBlockGroups; g += kTogether) {
      F v[kTogether];
      M here[kTogether];
      TS_TOGETHER v[i] = load<D>(x, g + i);
      if constexpr (From) {
        TS_TOGETHER here[i] = at_least(v[i], bound);
      }
      through.template divide<kDivide>(v);
      TS_TOGETHER v[i] = sub(v[i], top);
      exponentials(v);
      if (marks) {
        TS_TOGETHER v[i] = keep(lanes_of((uint16_t)~marks[g + i]), v[i]);
      }
      if constexpr (From) {
        TS_TOGETHER v[i] = keep(here[i], v[i]);
      }
      accumulate(&sum, v, magic);
    }
    *groups += kBlockGroups;
    if (blocks || *groups == kFlush * kBlockGroups) {
      const uint64_t part = total_of(sum, *groups, low_magic(bits), bits);
      if (blocks) blocks[b] = part;
      *total += part;
      *groups = 0;
      sum.high = sum.low = zero_integers();
    }
    *sums = sum;
  }
};

template <bool From, int kDivide>
uint64_t mass_of(const TsRow *row, float max, int bits, float from, uint64_t *blocks) {
  Sums sums = {zero_integers(), zero_integers()};
  int groups = 0;
  uint64_t total = 0;
  over_row(*row, Masses<From, kDivide>{Through(*row), max, from, bits, blocks, &sums, &groups, &total});
  return total + total_of(sums, groups, low_magic(bits), bits);
}

template <bool From>
uint64_t mass_from(const TsRow *row, float max, int bits, float from, uint64_t *blocks) {
  const Divisors divisors = divisors_of(*row, max);
  if (divisors == kNone) return mass_of<From, kNone>(row, max, bits, from, blocks);
  if (divisors == kOne) return mass_of<From, kOne>(row, max, bits, from, blocks);
  return mass_of<From, kAny>(row, max, bits, from, blocks);
}

uint64_t mass(const TsRow *row, float max, int bits, float from, uint64_t *blocks) {
  return from > -FLT_MAX ? mass_from<true>(row, max, bits, from, blocks) : mass_from<false>(row, max, bits, from, blocks);
}

struct Sample {
  const float *lanes;
  int64_t stride;
  float *out;
  int64_t *count;
  template <int D>
  TS_LANES void run(int64_t b, const char *x, const uint16_t *marks) const {
    if (b % stride) return;
    const int g = (int)((b / stride * 7) % kBlockGroups);
    const F v = load<D>(x, g);
    M here = lanes ? less(v, load_f32(lanes + b * kLanes)) : at_least(v, set1(-FLT_MAX));
    if (marks) here = but_not(here, lanes_of(marks[g]));
    const uint32_t bits = bits_of(here);
    int32_t unused[kLanes];
    compress(unused, out + *count, here, bits, v, 0);
    *count += __builtin_popcount(bits);
  }
};

int64_t sample(const TsRow *row, const float *lanes, int64_t stride, float *x) {
  int64_t count = 0;
  over_row(*row, Sample{lanes, stride, x, &count});
  return count;
}

constexpr int64_t kStep = kLanes * kTogether;

// kStep values: these if there are as many, or else copies of them in rest with max behind them.
TS_LANES const float *some_or_rest(const float *z, int64_t n, float max, float *rest) {
  if (n >= kStep) return z;
  for (int64_t j = 0; j < kStep; j += kLanes) store_f32(rest + j, set1(max));
  memcpy(rest, z, (size_t)n * sizeof(float));
  return rest;
}

void exps(const float *z, int64_t n, float max, float slope, float *e) {
  const F top = set1(max), by = set1(slope);
  for (int64_t at = 0; at < n; at += kStep) {
    float rest[kStep];
    const bool whole = n - at >= kStep;
    const float *from = some_or_rest(z + at, n - at, max, rest);
    F v[kTogether];
    TS_TOGETHER v[i] = mul(sub(load_f32(from + i * kLanes), top), by);
    exponentials(v);
    TS_TOGETHER store_f32((whole ? e + at : rest) + i * kLanes, v[i]);
    if (!whole) memcpy(e + at, rest, (size_t)(n - at) * sizeof(float));
  }
}

uint64_t weights(const float *z, int64_t n, float max, int bits, uint64_t *w) {
  const double scale = bits_to_double((uint64_t)(1023 + bits) << 52);
  const F top = set1(max);
  uint64_t total = 0;
  for (int64_t at = 0; at < n; at += kStep) {
    float e[kStep];
    const float *from = some_or_rest(z + at, n - at, max, e);
    F v[kTogether];
    TS_TOGETHER v[i] = sub(load_f32(from + i * kLanes), top);
    exponentials(v);
    TS_TOGETHER store_f32(e + i * kLanes, v[i]);
    const int64_t count = n - at < kStep ? n - at : kStep;
    for (int64_t j = 0; j < count; ++j) {
      w[at + j] = ts_weight(e[j], scale);
      total += w[at + j];
    }
  }
  return total;
}

#if !defined(TS_WEIGHTS_WHERE)  // an instruction set that adds 64-bit numbers under a mask says so
struct WeightSums {
  uint64_t sum;
};
TS_LANES void add_weights(WeightSums *sums, const M &m, const uint64_t *w) {
  const uint32_t bits = bits_of(m);
  for (int j = 0; j < kLanes; ++j) sums->sum += w[j] & (uint64_t(0) - (bits >> j & 1));
}
TS_LANES uint64_t sum_of(const WeightSums &sums) { return sums.sum; }
#endif

uint64_t weights_below(const float *z, const uint64_t *w, int64_t n, float threshold, int64_t *count) {
  const F bound = set1(threshold);
  WeightSums sums = {};
  int64_t found = 0, i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const M here = less(load_f32(z + i), bound);
    add_weights(&sums, here, w + i);
    found += bits_in(bits_of(here));
  }
  uint64_t rest = 0;
  for (; i < n; ++i) {
    const bool here = z[i] < threshold;
    rest += here ? w[i] : 0;
    found += here;
  }
  *count = found;
  return sum_of(sums) + rest;
}

void divide(float *z, int64_t n, float divisor) {
  const F by = set1(divisor);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_f32(z + i, div(load_f32(z + i), by));
  for (; i < n; ++i) z[i] = z[i] / divisor;
}

float below(const float *e, int64_t n, float threshold, int64_t *count) {
  constexpr int kSums = 4;  // one sum waits for the one before
  const F bound = set1(threshold);
  F sums[kSums];
  for (F &each : sums) each = set1(0.0f);
  int64_t found = 0, i = 0;
  const auto take = [&](int j, int64_t at) {
    const F v = load_f32(e + at);
    const M here = less(v, bound);
    sums[j] = add(sums[j], keep(here, v));
    found += __builtin_popcount(bits_of(here));
  };
  for (; i + kSums * kLanes <= n; i += kSums * kLanes) {
    for (int j = 0; j < kSums; ++j) take(j, i + j * kLanes);
  }
  for (; i + kLanes <= n; i += kLanes) take(0, i);
  float parts[kLanes], result = 0;
  store_f32(parts, add(add(sums[0], sums[1]), add(sums[2], sums[3])));
  for (float part : parts) result += part;
  for (; i < n; ++i) {
    if (e[i] >= threshold) continue;
    result += e[i];
    ++found;
  }
  *count = found;
  return result;
}

}  // namespace
