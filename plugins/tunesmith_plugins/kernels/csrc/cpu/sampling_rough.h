// An estimate of a row's mass with fused multiply-adds, at a third of what the weights themselves cost. Included after
// sampling_lanes.h by the versions that have the instructions. Its error is bounded (ChainRow::doubt_of), so a
// decision that the bound leaves open is made by the weights, and no token ever depends on the estimate.
#include "numeric.h"
#include "powers.h"

namespace {

// 2^f on [-1/2, 1/2], highest power first; the constant is 1. Relative error with fused steps below 2e-7.
constexpr float kPower[] = {0x1.5bba14p-10f, 0x1.3cea88p-7f, 0x1.c6b752p-5f, 0x1.ebf9bcp-3f, 0x1.62e42ap-1f, 1.0f};

// 2^(x * factor - whole) for an integer `whole` near the largest x * factor, so that no precision is lost to it.
struct Powers {
  float factor, lowest, magic;  // below `lowest` powers are as small as there
  explicit Powers(double divisor, double whole)
      : factor((float)(1 / (divisor * kLn2))), lowest((float)((whole - 120) * divisor * kLn2)), magic((float)(kRoundFloat - whole)) {}
  static bool fits(double whole) { return whole < 0x1p20 && whole > -0x1p20; }
  TS_LANES void of(F *v) const {
    const F slope = set1(factor), least = set1(lowest), round = set1(magic);
    F shifted[kTogether], p[kTogether];
    TS_TOGETHER v[i] = max(least, v[i]);
    TS_TOGETHER shifted[i] = multiply_add(v[i], slope, round);
    TS_TOGETHER p[i] = sub(round, shifted[i]);
    TS_TOGETHER v[i] = multiply_add(v[i], slope, p[i]);
    TS_TOGETHER p[i] = set1(kPower[0]);
#pragma GCC unroll 5
    for (int k = 1; k < 6; ++k) TS_TOGETHER p[i] = multiply_add(p[i], v[i], set1(kPower[k]));
    TS_TOGETHER v[i] = floats_of_bits(add_integers(bits_of_floats(p[i]), shift_left_23(bits_of_floats(shifted[i]))));
  }
  // The sum of exp(x / divisor - max) from that of the powers.
  double mass(double sum, double whole, double divisor, double max) const {
    return sum * ts_exp_double((whole - (double)factor * (max * divisor)) * kLn2);
  }
};

TS_LANES void add_together(Doubles *sums, F *sum) {
  for (int half = kTogether / 2; half; half /= 2) {
    for (int i = 0; i < half; ++i) sum[i] = add(sum[i], sum[i + half]);
  }
  add_to(sums, sum[0]);
}

struct Rough {
  Powers powers;
  float below;
  Doubles *sums;
  template <int D>
  TS_LANES void run(int64_t, const char *x, const uint16_t *marks) const {
    const F bound = set1(below);
    F sum[kTogether];
    TS_TOGETHER sum[i] = set1(0.0f);
    for (int g = 0; g < kBlockGroups; g += kTogether) {
      F v[kTogether];
      M here[kTogether];
      TS_TOGETHER v[i] = load<D>(x, g + i);
      TS_TOGETHER here[i] = less(v[i], bound);
      powers.of(v);
      if (marks) {
        TS_TOGETHER here[i] = but_not(here[i], lanes_of(marks[g + i]));
      }
      TS_TOGETHER sum[i] = add(sum[i], keep(here[i], v[i]));
    }
    add_together(sums, sum);
  }
};

double rough(const TsRow *row, float max, float below) {
  const double divisor = row->divisor_count ? row->divisors[0] : 1.0, whole = nearbyint((double)max / kLn2);
  const Powers powers(divisor, whole);
  Doubles sums = zero_doubles();
  over_row(*row, Rough{powers, below, &sums});
  return powers.mass(sum_of(sums), whole, divisor, (double)max);
}

// What scan does and the whole mass with it: while the row comes from memory there is time for both.
struct ScanRough {
  Powers powers;
  int64_t ahead;
  float *lanes;
  F *best;
  M *unordered;
  Doubles *sums;
  template <int D>
  TS_LANES void run(int64_t b, const char *x, const uint16_t *) const {
    F most = set1(-HUGE_VALF), sum[kTogether];
    M bad = no_lane();
    TS_TOGETHER sum[i] = set1(0.0f);
    for (int g = 0; g < kBlockGroups; g += kTogether) {
      F v[kTogether], m[kTogether];
      for (int line = 0; line < kTogether * kLanes * size_of(D) / 64; ++line) {
        prefetch((uintptr_t)x + (ahead + g * kLanes) * size_of(D) + 64 * line);
      }
      TS_TOGETHER m[i] = v[i] = load<D>(x, g + i);
      for (int i = 0; i < kTogether; i += 2) bad = either(bad, unordered_lanes(v[i], v[i + 1]));
      for (int half = kTogether / 2; half; half /= 2) {
        for (int i = 0; i < half; ++i) m[i] = max(m[i], m[i + half]);
      }
      most = max(most, m[0]);
      powers.of(v);
      TS_TOGETHER sum[i] = add(sum[i], v[i]);
    }
    store_f32(lanes + b * kLanes, most);
    *best = max(most, *best);
    *unordered = either(*unordered, bad);
    add_together(sums, sum);
  }
};

constexpr int64_t kHead = 8 * kBlock;  // tokens that a row is judged by
constexpr float kRemoved = -1e4f;      // what some masks set instead of -inf, or less

// The largest of a row's first tokens: of a block, or of as many as it takes to find one that no mask removed.
template <int D>
TS_LANES float first_of(const TsRow &row) {
  F best = set1(-HUGE_VALF);
  if (row.n < kBlock) {
    const Tail tail(row, 0);
    for (int g = 0; g < kBlockGroups; ++g) best = max(load_f32(tail.x + g * kLanes), best);
    return largest(best);
  }
  float first = -HUGE_VALF;
  for (int64_t i = 0; i + kBlock <= row.n && i < kHead && !(first > kRemoved); i += kBlock) {
    for (int g = 0; g < kBlockGroups; ++g) best = max(load<D>((const char *)row.x + i * size_of(D), g), best);
    first = largest(best);
  }
  return first;
}

template <int D>
TS_ONCE float scan_rough(const TsRow *row, float *lanes, uint8_t *has_nan, double *mass, bool judge) {
  *mass = -1;
  const double divisor = row->divisor_count ? row->divisors[0] : 1.0;
  const auto value_of = [row](float x) { return (double)(row->divisor_count ? x / row->divisors[0] : x); };
  const double whole = nearbyint((double)first_of<D>(*row) / (divisor * kLn2));  // somewhere near the maximum
  if (!Powers::fits(whole)) return scan<D>(row, lanes, has_nan);
  const Powers powers(divisor, whole);
  F best = set1(-HUGE_VALF);
  M unordered = no_lane();
  Doubles sums = zero_doubles();
  TsRow part = *row;
  part.n = row->n < kHead ? row->n : kHead;
  float most;
  bool estimated = true;
  for (int64_t begin = 0;;) {  // the head, then the rest
    over_blocks<D, kScanStreams>(part, ScanRough{powers, ahead_of(*row), lanes + begin / kBlock * kLanes, &best, &unordered, &sums});
    most = largest(best);
    if (begin + part.n == row->n) break;
    begin = part.n;
    part.x = (const char *)row->x + begin * size_of(D);
    part.n = row->n - begin;
    estimated = powers.mass(sum_of(sums), whole, divisor, value_of(most)) < kHead / 50;
    if (estimated) continue;
    *mass = kFlat;
    if (judge) return most;
    const float other = scan<D>(&part, lanes + begin / kBlock * kLanes, has_nan);
    most = other > most ? other : most;
    break;
  }
  if (bits_of(unordered)) *has_nan = 1;
  const double max = value_of(most);
  // further away powers overflow, or most of them are as small as they get
  if (estimated && max / kLn2 - whole < 100) *mass = powers.mass(sum_of(sums), whole, divisor, max);
  return most;
}

}  // namespace
