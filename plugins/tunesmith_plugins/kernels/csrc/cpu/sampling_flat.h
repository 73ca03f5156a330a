// What top-p and a draw ask of a flat row, in the one pass that reads it. Included after sampling_lanes.h by the versions
// that look up a table of 32 floats, and after sampling_shallow.h. Sums are estimates with a bounded error (ChainRow::flat_draw).
#include "numeric.h"

namespace {

// 2^y as table[32 y mod 32] * ((r + kMiddle)^2 + kConstant) * 2^floor(n), where n is the multiple of 1/32 nearest to y, less
// kMiddle, and r = y - n. With kMiddle a multiple of 1/32 too one subtraction gives n, and one fused step r + kMiddle.
constexpr float kMiddle = 1.4375f, kConstant = 2.08126002f;
constexpr double kSquare = 0.24109942;
constexpr float kGrid = 0x1.8p18f;  // adding it rounds to a multiple of 1/32, whose last five bits are the float's

constexpr int kOften = 8;  // seldom are more of 64 tokens listed

struct QuickPowers {
  F low, high;
  TS_LANES QuickPowers() {
    alignas(64) static const float table[32] = {
#define TS_ENTRY(j, v) (float)(kSquare * v * ((j) < 14 ? 4 : 2))
        TS_ENTRY(0, 1.0), TS_ENTRY(1, 1.0218971486541166), TS_ENTRY(2, 1.0442737824274138), TS_ENTRY(3, 1.0671404006768237),
        TS_ENTRY(4, 1.0905077326652577), TS_ENTRY(5, 1.1143867425958924), TS_ENTRY(6, 1.1387886347566916), TS_ENTRY(7, 1.1637248587775775),
        TS_ENTRY(8, 1.189207115002721), TS_ENTRY(9, 1.215247359980469), TS_ENTRY(10, 1.2418578120734840), TS_ENTRY(11, 1.2690509571917332),
        TS_ENTRY(12, 1.2968395546510096), TS_ENTRY(13, 1.3252366431597413), TS_ENTRY(14, 1.3542555469368927), TS_ENTRY(15, 1.3839098819638320),
        TS_ENTRY(16, 1.4142135623730951), TS_ENTRY(17, 1.4451808069770467), TS_ENTRY(18, 1.4768261459394993), TS_ENTRY(19, 1.5091644275934228),
        TS_ENTRY(20, 1.5422108254079407), TS_ENTRY(21, 1.5759808451078865), TS_ENTRY(22, 1.6104903319492543), TS_ENTRY(23, 1.6457554781539649),
        TS_ENTRY(24, 1.681792830507429), TS_ENTRY(25, 1.7186192981224779), TS_ENTRY(26, 1.7562521603732995), TS_ENTRY(27, 1.7947090750031072),
        TS_ENTRY(28, 1.8340080864093424), TS_ENTRY(29, 1.8741676341103000), TS_ENTRY(30, 1.9152065613971474), TS_ENTRY(31, 1.9571441241754002)};
#undef TS_ENTRY
    low = load_f32(table);
    high = load_f32(table + kLanes);
  }
  // 2^(x * slope) is first * second. An x of -inf gives 0, and one that is no number or +inf what is not finite.
  TS_LANES void of(const F &x, const F &slope, F *first, F *second) const {
    const F t = multiply_add(x, slope, set1(kGrid)), n = sub(t, set1(kGrid + kMiddle)), r = multiply_less(x, slope, n);
    *first = lookup(bits_of_floats(t), low, high);
    *second = times_power(multiply_add(r, r, set1(kConstant)), n, t);
  }
};

// What a power is of: x as it is, less an offset, or a quotient less an offset.
enum Way { kPlain, kShifted, kDivided };

Way way_of(const TsPowers &powers) { return powers.divisor != 0 ? kDivided : powers.offset != 0 ? kShifted : kPlain; }

// The exponent before the slope. Without kClamp no x is to be finite and far below what counts: a square would overflow. A NaN
// stays one.
template <int kWay, bool kClamp>
struct Exponent {
  F lowest, high, low, offset;
  TS_LANES explicit Exponent(const TsPowers &powers) : lowest(set1(powers.lowest)), offset(set1(powers.offset)) {
    if constexpr (kWay == kDivided) {
      const float upper = 1.0f / powers.divisor;
      high = set1(upper);
      low = set1((float)(1.0 / (double)powers.divisor - (double)upper));
    }
  }
  TS_LANES F of(F v) const {
    if constexpr (kClamp) v = max(lowest, v);
    if constexpr (kWay == kDivided) v = multiply_add(v, high, mul(v, low));
    if constexpr (kWay != kPlain) v = sub(v, offset);
    return v;
  }
};

// The one value at i, without a branch on what it is.
template <int D>
TS_LANES float value_at(const char *x, int64_t i) {
  if constexpr (D == TS_F16) return half_at((const uint16_t *)x + i);
  return one_of<D>(x, i);
}

template <int kWay>
struct Flat {
  TsPowers how;
  int64_t ahead;
  float from, below;
  TsFlat *out;
  F *most;
  bool *clamped, *stopped;

  template <int D>
  TS_LANES void run(int64_t b, const char *x, const uint16_t *) const {
    if (*stopped) return;
    if constexpr (kWay == kPlain) {
      if (!*clamped) {
        if (block<D, false>(b, x)) return;
        *clamped = true;  // or it is no number
      }
      *stopped = !again<D>(b, x);
    } else {
      *stopped = !block<D, true>(b, x);
    }
  }
  template <int D>
  TS_ONCE bool again(int64_t b, const char *x) const {
    return block<D, true>(b, x);
  }

  template <int D, bool kClamp>
  TS_LANES bool block(int64_t b, const char *x) const {
    constexpr int kFour = 4;
    const QuickPowers powers;
    const Exponent<kWay, kClamp> exponent(how);
    const F by = set1(how.slope), low = set1(from), bound = set1(below);
    uint16_t inside[kBlockGroups];
    F whole[kFour], rest[kFour];
    for (int i = 0; i < kFour; ++i) whole[i] = rest[i] = set1(0.0f);
    for (int g = 0; g < kBlockGroups; g += kFour) {
      for (int line = 0; line < kFour * kLanes * size_of(D) / 64; ++line) {
        prefetch((uintptr_t)x + (ahead + g * kLanes) * size_of(D) + 64 * line);
      }
      for (int i = 0; i < kFour; ++i) {
        const F v = load<D>(x, g + i);
        F first, second;
        powers.of(exponent.of(v), by, &first, &second);
        const M under = less(v, bound);
        whole[i] = multiply_add(first, second, whole[i]);
        rest[i] = multiply_add_where(under, first, second, rest[i]);
        store_mask(inside + g + i, at_least_where(under, v, low));
      }
    }
    const F all = add(add(whole[0], whole[1]), add(whole[2], whole[3]));
    double sums[2];
    sums_of_pair(all, add(add(rest[0], rest[1]), add(rest[2], rest[3])), sums);
    if (!(out->whole + sums[0] < out->enough)) return false;
    *most = max(all, *most);
    out->sums[2 * b] = sums[0];
    out->sums[2 * b + 1] = sums[1];
    out->whole += sums[0];
    out->rest += sums[1];
    int64_t listed = out->listed;
    out->spans[2 * b] = (int32_t)listed;
    for (int word = 0; word < kBlockGroups / 4; ++word) {
      uint64_t left;
      memcpy(&left, inside + 4 * word, 8);
      const int64_t found = bits_in(left);
      float *at = out->x + listed;
      const auto write = [&] {
        *at++ = value_at<D>(x, word * 64 + lowest_bit(left | uint64_t(1) << 63));
        left &= left - 1;
      };
      for (int i = 0; i < kOften; ++i) write();  // whether there are as many or not: how many there are can rarely be foreseen
      if (left) {  // of equal values that are many
        at = out->x + listed;
        for (int i = 0; i < 4; ++i) {
          const uint16_t bits = inside[4 * word + i];
          squeeze(at, lanes_of(bits), bits, load<D>(x, 4 * word + i));
          at += bits_in(bits);
        }
      }
      listed += found;
    }
    out->spans[2 * b + 1] = (int32_t)listed;
    out->listed = listed;
    return true;
  }
};

template <int kWay>
bool flat_pass_of(const TsRow *row, const TsPowers &powers, float from, float below, TsFlat *out) {
  F sums = set1(0.0f);
  bool clamped = false, stopped = false;
  out->listed = 0;
  out->whole = out->rest = 0;
  over_row<kScanStreams>(*row, Flat<kWay>{powers, ahead_of(*row), from, below, out, &sums, &clamped, &stopped});
  out->most = most(sums);
  return !stopped;
}

bool flat_pass(const TsRow *row, const TsPowers *powers, float from, float below, TsFlat *out) {
  const Way way = way_of(*powers);
  if (way == kPlain) return flat_pass_of<kPlain>(row, *powers, from, below, out);
  if (way == kShifted) return flat_pass_of<kShifted>(row, *powers, from, below, out);
  return flat_pass_of<kDivided>(row, *powers, from, below, out);
}

bool divides(float divisor) {
  const float upper = 1.0f / divisor;
  return has_quotient(divisor, 0) && quick_quotients(divisor, upper, (float)(1.0 / (double)divisor - (double)upper));
}

// Whole blocks, since where a row is in no cache it takes longer to find many places than to read on.
template <int D>
TS_LANES int64_t some_of(const TsRow &row, int64_t step, float *x, float *largest) {
  int64_t count = 0;
  F best = set1(-HUGE_VALF);
  for (int64_t b = step / 2; b < row.n / kBlock; b += step) {
    for (int g = 0; g < kBlockGroups; ++g) {
      const F v = load<D>((const char *)row.x + b * kBlock * size_of(D), g);
      const M here = both(at_least(v, set1(-FLT_MAX)), less(v, set1(HUGE_VALF)));
      const uint32_t bits = bits_of(here);
      squeeze(x + count, here, bits, v);
      count += bits_in(bits);
      best = max(where(here, v, best), best);
    }
  }
  *largest = most(best);
  return count;
}

int64_t some(const TsRow *row, int64_t step, float *x, float *largest) {
  if (row->dtype == TS_F32) return some_of<TS_F32>(*row, step, x, largest);
  if (row->dtype == TS_BF16) return some_of<TS_BF16>(*row, step, x, largest);
  return some_of<TS_F16>(*row, step, x, largest);
}

template <int kWay>
TS_LANES double powers_of(const float *x, int64_t n, const TsPowers &how, float *u) {
  const QuickPowers powers;
  const Exponent<kWay, true> exponent(how);
  Doubles sum = zero_doubles();
  for (int64_t i = 0; i < n; i += kLanes) {
    F first, second;
    const F v = load_f32(x + i);
    powers.of(exponent.of(v), set1(how.slope), &first, &second);
    first = keep(less(v, set1(HUGE_VALF)), mul(first, second));
    store_f32(u + i, first);
    add_to(&sum, first);
  }
  return sum_of(sum);
}

double powers(const float *x, int64_t n, const TsPowers *how, float *u) {
  const Way way = way_of(*how);
  if (way == kPlain) return powers_of<kPlain>(x, n, *how, u);
  if (way == kShifted) return powers_of<kShifted>(x, n, *how, u);
  return powers_of<kDivided>(x, n, *how, u);
}

TsUnder under(const float *x, const float *u, int64_t n, float pivot) {
  const F bound = set1(pivot), nothing = set1(-HUGE_VALF);
  F prior = nothing, next = nothing;  // the next one's negative
  Doubles sum = zero_doubles();
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += kLanes) {
    const F v = load_f32(x + i);
    const M here = less(v, bound);
    count += bits_in(bits_of(here));
    add_to(&sum, keep(here, load_f32(u + i)));
    prior = max(where(here, v, nothing), prior);
    next = max(where(here, nothing, sub(set1(0.0f), v)), next);
  }
  return {sum_of(sum), count, most(prior), -most(next)};
}

int64_t pick(const float *x, const float *u, int64_t n, float from, float below, float *some_x, float *some_u) {
  const F low = set1(from), bound = set1(below);
  int64_t found = 0;
  for (int64_t i = 0; i < n; i += kLanes) {
    const F v = load_f32(x + i);
    const M here = both(at_least(v, low), less(v, bound));
    const uint32_t bits = bits_of(here);
    squeeze(some_x + found, here, bits, v);
    squeeze(some_u + found, here, bits, load_f32(u + i));
    found += bits_in(bits);
  }
  return found;
}

void kept(TsFlat *flat, const float *u, int64_t blocks, float bound, float beyond) {
  const F low = set1(bound), high = set1(beyond);
  for (int64_t b = 0; b < blocks; ++b) {
    Doubles sum = zero_doubles();
    int32_t equal = 0;
    int64_t at = flat->spans[2 * b];
    const int64_t end = flat->spans[2 * b + 1];
    do {  // mostly once
      F part = set1(0.0f);
      for (int half = 0; half < 2; ++half, at += kLanes) {
        const int64_t left = end - at;
        const M some = lanes_of(left >= kLanes ? (uint16_t)0xffff : left > 0 ? (uint16_t)((1 << left) - 1) : (uint16_t)0);
        const F v = load_f32(flat->x + at);
        const M here = both(some, at_least(v, low));
        part = add(part, keep(here, load_f32(u + at)));
        equal += bits_in(bits_of(both(here, less(v, high))));
      }
      add_to(&sum, part);
    } while (at < end);
    flat->sums[2 * b] += sum_of(sum) - flat->sums[2 * b + 1];
    flat->spans[2 * b] = equal;
  }
}

constexpr TsFlatLoops flat_loops = {divides, some, flat_pass, powers, under, pick, kept};

}  // namespace
