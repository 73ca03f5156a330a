// What top-p asks of a flat row, at two thirds of what split() costs. Included after sampling_lanes.h by the versions that
// turn floats into integers quickly. Where every listed token has exp(f(x) - max) >= 2^(23 - kFraction), those exponentials
// are multiples of 2^-kFraction: integers of 32 bits, whose sums are those of the weights. All others, rounded to as many
// bits, add up to nearly theirs.
#include "numeric.h"

namespace {

constexpr int kChunk = 8;  // groups whose sums stay in 32 bits: they reach 2^32 only if a lane is exp(0) in all of them

// x / d as x * high + x * low, where the parts of the reciprocal are those of Through: before the last rounding it is within
// 2^-47 of the quotient, and a quotient of two floats that is not halfway between two others is nearly always further from
// there. Where it might not be, X 2^k = 1 or -1 modulo D for the odd parts X of x and D of d, k = 24 or 25 (one less where
// d has 23 bits): no more than these few are tried. Near 0, where x * low is too small for a float,
// it does not hold: nothing may be decided there (ChainRow::shallow_top_p).
bool quick_quotients(float divisor, float high, float low) {
  const uint32_t d = (float_to_bits(divisor) & 0x7fffffu) | 0x800000u;
  if (d % 4 == 0) return true;
  const uint32_t odd = d % 2 ? d : d / 2;
  uint32_t power = 1;  // 2^-k modulo odd
  for (int k = 1; k <= 25; ++k) {
    power = power % 2 ? (power + odd) / 2 : power / 2;
    if (k < (d % 2 ? 24 : 23) || k > (d % 2 ? 25 : 24)) continue;
    for (int sign = 0; sign < 2; ++sign) {
      for (uint32_t x = sign ? odd - power : power; x < 0x1000000u; x += odd) {
        const F v = set1((float)x), q = multiply_add(v, set1(high), mul(v, set1(low))), exact = div(v, set1(divisor));
        if (x >= 0x800000u && bits_of(either(less(q, exact), less(exact, q)))) return false;
      }
    }
  }
  return true;
}

// Sums of 32-bit lanes in lanes of 64 bits: of both halves as they are, and of the upper ones.
struct Wide {
  I whole, upper;
  TS_LANES void take(const I &sum) {
    whole = add_longs(whole, sum);
    upper = add_longs(upper, upper_words(sum));
  }
  TS_LANES uint64_t total() const { return sum_of_longs(add_longs(less_longs(whole, lifted(upper)), upper)); }
};

template <int kDivide>
struct Shallow {
  Through through;
  float max, from, below;
  int shift;  // from 2^-kFraction to weights
  uint64_t *blocks, *some;
  float *z;
  uint64_t *w;
  int64_t *ends;
  int64_t *count, *others;
  Wide *all;
  M *wrapped;
  template <int D>
  TS_LANES void run(int64_t b, const char *x, const uint16_t *marks) const {
    const F top = set1(max), low = set1(from), bound = set1(below);
    alignas(64) float quotients[kBlock];
    alignas(64) uint32_t integers[kBlock];
    uint16_t reach[kBlockGroups], here[kBlockGroups];  // tokens of at least from, and of at least below
    Wide above = {zero_integers(), zero_integers()}, both = *all;
    M bad = *wrapped;
    for (int chunk = 0; chunk < kBlockGroups; chunk += kChunk) {
      I whole = zero_integers(), part = zero_integers();
      for (int g = chunk; g < chunk + kChunk; g += kTogether) {
        F v[kTogether];
        I last;
        TS_TOGETHER v[i] = load<D>(x, g + i);
        TS_TOGETHER {
          store_mask(reach + g + i, at_least(v[i], low));
          store_mask(here + g + i, at_least(v[i], bound));
        }
        if constexpr (kDivide == kOne) {
          const F high = set1(through.high), low_part = set1(through.low);
          TS_TOGETHER v[i] = multiply_add(v[i], high, mul(v[i], low_part));
        }
        TS_TOGETHER store_f32(quotients + (g + i) * kLanes, v[i]);
        TS_TOGETHER v[i] = sub(v[i], top);
        exponentials<kFraction>(v);
        if (marks) {
          TS_TOGETHER v[i] = keep(lanes_of((uint16_t)~marks[g + i]), v[i]);
        }
        TS_TOGETHER {
          last = integers_of(v[i]);
          store_integers(integers + (g + i) * kLanes, last);
          whole = add_integers(whole, last);
          part = add_where(load_mask(here + g + i), part, last);
        }
        if (g + kTogether == chunk + kChunk) bad = either(bad, smaller(whole, last));
      }
      both.take(whole);
      above.take(part);
    }
    *all = both;
    *wrapped = bad;
    int64_t listed = *count, fewer = kBlock;
    for (int word = 0; word < kBlockGroups / 4; ++word) {
      uint64_t reaching, beyond;
      memcpy(&reaching, reach + 4 * word, 8);
      memcpy(&beyond, here + 4 * word, 8);
      fewer -= bits_in(beyond);
      uint64_t left = reaching & ~beyond;
      if (marks) {
        uint64_t passed;
        memcpy(&passed, marks + 4 * word, 8);
        left &= ~passed;
      }
      const int64_t found = bits_in(left);
      int64_t at = listed;
      const auto write = [&] {
        const int place = word * 64 + lowest_bit(left | uint64_t(1) << 63);
        z[at] = quotients[place];
        w[at++] = (uint64_t)integers[place] << shift;
        left &= left - 1;
      };
      write();  // whether there is one or not: how many there are can rarely be foreseen
      write();
      write();
      write();
      while (left) write();
      listed += found;
    }
    *count = ends[b] = listed;
    *others += fewer;
    const uint64_t part = above.total() << shift;
    blocks[b] = part;
    *some += part;
  }
};

template <int kDivide>
bool shallow_of(const TsRow *row, float max, int bits, float from, float below, TsShallow *out) {
  int64_t count = 0, others = 0;
  uint64_t some = 0;
  Wide all = {zero_integers(), zero_integers()};
  M wrapped = no_lane();
  const int shift = bits - kFraction;
  over_row(*row, Shallow<kDivide>{Through(*row), max, from, below, shift, out->blocks, &some, out->z, out->w, out->ends, &count, &others,
                                  &all, &wrapped});
  out->above = some;
  out->near = (all.total() << shift) - some;
  out->error = ((uint64_t)others << shift) / 2 + (uint64_t)others;
  return !bits_of(wrapped);
}

bool shallow(const TsRow *row, float max, int bits, float from, float below, TsShallow *out) {
  const Divisors divisors = divisors_of(*row, max);
  if (divisors == kNone) return shallow_of<kNone>(row, max, bits, from, below, out);
  const Through through(*row);
  if (divisors == kAny || !quick_quotients(row->divisors[0], through.high, through.low)) return false;
  return shallow_of<kOne>(row, max, bits, from, below, out);
}

}  // namespace
