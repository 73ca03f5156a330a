// An estimate of a row's mass with fused multiply-adds, at a third of what the weights themselves cost. Included after
// sampling_lanes.h by the versions that have the instructions. Its error is bounded (ChainRow::rough_below), so a
// decision that the bound leaves open is made by the weights, and no token ever depends on the estimate.
#include "numeric.h"

namespace {

// 2^f on [-1/2, 1/2], highest power first; the constant is 1. Relative error with fused steps below 2e-7.
constexpr float kPower[] = {0x1.5bba14p-10f, 0x1.3cea88p-7f, 0x1.c6b752p-5f, 0x1.ebf9bcp-3f, 0x1.62e42ap-1f, 1.0f};

struct Rough {
  float reference, factor, lowest, below;
  Doubles *sums;
  template <int D>
  TS_LANES void run(int64_t, const char *x, const uint16_t *marks) const {
    const F least = set1(lowest), origin = set1(reference), slope = set1(factor), bound = set1(below);
    F sum[kTogether];
    TS_TOGETHER sum[i] = set1(0.0f);
    for (int g = 0; g < kBlockGroups; g += kTogether) {
      F v[kTogether], n[kTogether], p[kTogether];
      M here[kTogether];
      TS_TOGETHER v[i] = load<D>(x, g + i);
      TS_TOGETHER here[i] = less(v[i], bound);
      TS_TOGETHER v[i] = max(least, v[i]);
      TS_TOGETHER v[i] = mul(sub(v[i], origin), slope);
      TS_TOGETHER n[i] = nearest(v[i]);
      TS_TOGETHER v[i] = sub(v[i], n[i]);
      TS_TOGETHER p[i] = set1(kPower[0]);
#pragma GCC unroll 5
      for (int k = 1; k < 6; ++k) TS_TOGETHER p[i] = multiply_add(p[i], v[i], set1(kPower[k]));
      TS_TOGETHER v[i] = times_power(p[i], n[i]);
      if (marks) {
        TS_TOGETHER here[i] = but_not(here[i], lanes_of(marks[g + i]));
      }
      TS_TOGETHER sum[i] = add(sum[i], keep(here[i], v[i]));
    }
    for (int half = kTogether / 2; half; half /= 2) {
      for (int i = 0; i < half; ++i) sum[i] = add(sum[i], sum[i + half]);
    }
    add_to(sums, sum[0]);
  }
};

double rough(const TsRow *row, float max, float below) {
  const double divisor = row->divisor_count ? row->divisors[0] : 1.0;
  const float reference = (float)((double)max * divisor);
  Doubles sums = zero_doubles();
  // exp(-87) is less than any weight
  over_row(*row, Rough{reference, (float)(1 / (divisor * kLn2)), (float)((double)reference - 87 * divisor), below, &sums});
  // the reference is not exactly where the maximum is
  const double off = (double)reference / divisor - (double)max;
  return sum_of(sums) * (1 + off);
}

}  // namespace
