// Masses of rows: sums, the estimates that stand for them, and what flat rows are drawn by.
#include <float.h>
#include <math.h>
#include <string.h>

#include <algorithm>

#include "native_tests.h"
#include "numeric.h"
#include "sampling.h"

// Sums in one pass are those of two, and the estimate is as near to the weights as ChainRow::doubt_of says.
void sums_of_rows() {
  int64_t estimates = 0, flat = 0, shallow = 0, kinds = 0;
  for (const std::string &isa : instruction_sets()) {
    REQUIRE(ts_isa_set(isa.c_str()) == TS_OK);
    const TsSampling *kernels = ts_sampling();
    for (int trial = 0; trial < 60; ++trial) {
      const int64_t n = trial % 5 ? pick(1, 6000) : pick(2049, 6000), blocks = (n + kBlock - 1) / kBlock;
      const int bits = ts_weight_bits(n);
      const double spread = trial % 5 ? real(.1, 5) : .3, shift = real(-40, 40);
      auto x = exactly<float>(n);
      for (int64_t i = 0; i < n; ++i) x[i] = (float)(spread * (real(-3, 3) + real(-3, 3)) + shift);
      auto marks = exactly<uint16_t>(blocks * kBlockGroups);
      auto flagged = exactly<uint8_t>(blocks);
      for (int64_t j = trial % 2 ? pick(0, 9) : 0; j > 0; --j) {
        const int64_t id = pick(0, n - 1);
        marks[id / kLanes] = (uint16_t)(marks[id / kLanes] | 1u << id % kLanes);
        flagged[id / kBlock] = 1;
      }
      const float divisor = (float)real(.2, 3);
      const TsRow row = {x.get(), n, trial % 2 ? marks.get() : nullptr, flagged.get(), &divisor, trial % 3 ? 1 : 0, TS_F32,
                         trial % 7 < 3, trial % 4 ? nullptr : x.get()};
      float top = x[0];
      for (int64_t i = 0; i < n; ++i) top = x[i] > top ? x[i] : top;
      const float max = row.divisor_count ? top / divisor : top, from = top - (float)real(0, 4 * spread);
      const float lowest = from - (float)real(0, spread);
      auto one = exactly<uint64_t>(blocks), two = exactly<uint64_t>(blocks);
      auto between = exactly<float>(n + kLanes), lanes = exactly<float>(blocks * kLanes), listed = exactly<float>(n + kLanes);
      auto ends = exactly<int64_t>(blocks);
      auto ids = exactly<int32_t>(n + kLanes);
      uint64_t all = 0;
      const uint64_t above = kernels->split(&row, max, bits, lowest, from, one.get(), between.get(), ends.get(), &all);
      uint8_t has_nan = 0;
      const float largest = kernels->scan[row.dtype](&row, lanes.get(), &has_nan);
      {
        TsRow other = row;  // read in another order
        other.in_line = !row.in_line;
        auto again = exactly<float>(blocks * kLanes);
        REQUIRE(kernels->scan[row.dtype](&other, again.get(), &has_nan) == largest && same(again.get(), lanes.get(), blocks * kLanes));
      }
      const int64_t found = kernels->collect[row.dtype](&row, lanes.get(), lowest, from, ids.get(), listed.get());
      REQUIRE(ends[blocks - 1] == found && same(between.get(), listed.get(), found));
      for (int64_t b = 0, at = 0; b < blocks; ++b) {
        while (at < found && ids[at] < (b + 1) * kBlock) ++at;
        REQUIRE(ends[b] == at);
      }
      REQUIRE(above == kernels->mass(&row, max, bits, from, two.get()) && same(one.get(), two.get(), blocks));
      REQUIRE(all == kernels->mass(&row, max, bits, -HUGE_VALF, nullptr));
      REQUIRE(all == ts_sampling_scalar.mass(&row, max, bits, -HUGE_VALF, nullptr));
      if (kernels->shallow && ts_exp((row.divisor_count ? lowest / divisor : lowest) - max) > 1.001f * 0x1p23f / (1 << kFraction)) {
        auto z = exactly<float>(n + kLanes);
        auto w = exactly<uint64_t>(n + kLanes);
        TsShallow sums = {two.get(), z.get(), w.get(), ends.get(), 0, 0, 0};
        for (int64_t b = 0; b < blocks; ++b) two[b] = (uint64_t)(ends[b] = -1);
        if (kernels->shallow(&row, max, bits, lowest, from, &sums)) {
          REQUIRE(sums.above == above && same(one.get(), two.get(), blocks) && ends[blocks - 1] == found);
          for (int64_t b = 0, at = 0; b < blocks; ++b) {
            while (at < found && ids[at] < (b + 1) * kBlock) ++at;
            REQUIRE(ends[b] == at);
          }
          for (int64_t i = 0; i < found; ++i) {
            REQUIRE(z[i] == (row.divisor_count ? listed[i] / divisor : listed[i]));
            REQUIRE(w[i] == ts_weight(ts_exp(z[i] - max), ldexp(1.0, bits)));
          }
          const uint64_t others = all - above;
          REQUIRE((others > sums.near ? others - sums.near : sums.near - others) <= sums.error);
          ++shallow;
        }
      }
      if (!kernels->rough) continue;
      if (!row.marks) {
        auto again = exactly<float>(blocks * kLanes);
        double estimate = -1;
        const float most = kernels->scan_rough[row.dtype](&row, again.get(), &has_nan, &estimate, false);
        REQUIRE(most == top && !has_nan && same(again.get(), lanes.get(), blocks * kLanes));
        flat += estimate < 0;
        if (estimate >= 0) {
          const double exact = ldexp((double)(int64_t)all, -bits), deep = log((double)n / fmax(estimate, 1e-9));
          REQUIRE(fabs(estimate - exact) <= estimate * (0x1p-24 * (fabs((double)max) + 3 * deep) + 8e-7) + (double)n * 0x1p-44);
          ++estimates;
        }
      }
      const double scale = ldexp(1.0, bits), mass = (double)(int64_t)(all - above) / scale;
      const double estimate = kernels->rough(&row, max, from), deep = log((double)n / fmax(estimate, 1e-9));
      const double error = estimate * (0x1p-24 * (fabs((double)max) + 3 * deep) + 8e-7) + (double)n * 0x1p-44;
      REQUIRE(fabs(estimate - mass) <= error);
      ++estimates;
    }
  }
  // Where sums of 32 bits overflow that is said; divisors whose quotients take the long way round are refused.
  for (const std::string &isa : instruction_sets()) {
    REQUIRE(ts_isa_set(isa.c_str()) == TS_OK);
    const TsSampling *kernels = ts_sampling();
    if (!kernels->shallow) continue;
    ++kinds;
    float x[300], z[300 + kLanes];
    uint64_t blocks[2], w[300 + kLanes];
    int64_t ends[2];
    TsShallow sums = {blocks, z, w, ends, 0, 0, 0};
    for (int equal = 0; equal < 300; ++equal) {  // all but one of a lane's tokens, or all
      for (int i = 0; i < 300; ++i) x[i] = i < equal ? 1.0f : 0.5f;
      const TsRow row = {x, 300, nullptr, nullptr, nullptr, 0, TS_F32};
      uint64_t one[2];
      const uint64_t above = kernels->mass(&row, 1, 44, .75f, one);
      const bool fits = kernels->shallow(&row, 1, 44, .75f, .75f, &sums);
      REQUIRE(fits == (equal < 113));
      REQUIRE(!fits || (sums.above == above && same(blocks, one, 2)));
    }
    for (const float divisor : {.96f, .48f, .8f, .7f, 1.3f}) {
      const TsRow row = {x, 300, nullptr, nullptr, &divisor, 1, TS_F32};
      x[299] = 2;
      REQUIRE(kernels->shallow(&row, 2 / divisor, 44, 2, 2, &sums) == (divisor != .96f && divisor != .48f));
    }
  }
  REQUIRE(!kinds || shallow);
  // Quotients to the last bit, of whatever size: most weights of these rows change with it.
  for (const std::string &isa : instruction_sets()) {
    REQUIRE(ts_isa_set(isa.c_str()) == TS_OK);
    for (int trial = 0; trial < 400; ++trial) {
      float x[256];
      const double size = exp(real(-75, trial % 9 ? 0 : 80));
      for (float &v : x) v = (float)(size * real(-9, 9) * (pick(0, 7) ? 1 : exp(real(-60, 0))));
      if (trial % 5 == 0) x[pick(1, 255)] = trial % 10 ? -HUGE_VALF : -3e38f;
      const float divisor = (float)(trial % 3 ? real(.05, 3) : exp(real(-20, 20)));
      const TsRow row = {x, 256, nullptr, nullptr, &divisor, 1, TS_F32};
      float max = -HUGE_VALF;
      for (const float v : x) max = v / divisor > max ? v / divisor : max;
      if (max == HUGE_VALF) continue;
      uint64_t block, expected;
      ts_sampling()->mass(&row, max, 44, -HUGE_VALF, &block);
      ts_sampling_scalar.mass(&row, max, 44, -HUGE_VALF, &expected);
      REQUIRE(block == expected);
    }
  }
  REQUIRE(!estimates || (flat && flat < estimates));
  printf("sums of rows: one pass is two, and %lld times a shallow one; %lld estimates within their bound, %lld rows too flat for one\n",
         (long long)shallow, (long long)estimates, (long long)flat);
}

namespace {

// What a flat row is drawn by: exp, powers, sums and weights are no further off than is said, whatever is far below the others.
int64_t flat_estimates(const TsFlatLoops &flat) {
  int64_t apart = 0;
  for (int trial = 0; trial < 120; ++trial) {
    const int64_t n = pick(1, 5000), blocks = (n + kBlock - 1) / kBlock, room = n + 2 * kLanes;
    const float divisor = trial % 6 == 3 ? 1.0f : (float)real(.3, 3);
    // Of x as it is, of x less an offset, and of quotients less an offset.
    const bool shifted = trial % 3 != 0, divided = trial % 3 == 2 && flat.divides(divisor);
    const double spread = real(.1, 2), shift = shifted ? real(-150, 150) : real(-8, 8), unit = divided ? 1 : (double)divisor;
    TsPowers how = {(float)(1 / (unit * kLn2)), shifted ? rintf((float)(shift / (divided ? divisor : 1))) : 0, divided ? divisor : 0, 0};
    how.lowest = (float)((how.offset - 1000 / (double)how.slope) * (divided ? divisor : 1));
    const float removed = trial % 4 == 0 ? -HUGE_VALF : trial % 4 == 1 ? -FLT_MAX : trial % 4 == 2 ? -1e30f : -1e9f;
    auto x = exactly<float>(n);
    for (int64_t i = 0; i < n; ++i) x[i] = pick(0, trial % 5 ? 99 : 999) ? (float)(shift + spread * (real(-1, 1) + real(-1, 1))) : removed;
    const float top = *std::max_element(x.get(), x.get() + n);
    if (top == removed) continue;
    apart += how.offset != 0;
    const float from = (float)(shift - real(0, spread)), below = from + (float)real(0, spread), max = top / divisor;
    const TsRow row = {x.get(), n, nullptr, nullptr, nullptr, 0, TS_F32, trial % 2 == 0};
    auto sums = exactly<double>(2 * blocks);
    auto spans = exactly<int32_t>(2 * blocks);
    auto listed = exactly<float>(room), u = exactly<float>(room), every = exactly<float>(blocks * kBlock), powers = exactly<float>(blocks * kBlock);
    TsFlat found = {sums.get(), spans.get(), listed.get(), 0, 0, 0, 0, HUGE_VAL};
    REQUIRE(flat.pass(&row, &how, from, below, &found));
    std::fill(std::copy_n(x.get(), n, every.get()), every.get() + blocks * kBlock, -HUGE_VALF);
    flat.powers(every.get(), blocks * kBlock, &how, powers.get());
    const double slope = (double)how.slope * unit * kLn2, steep = fabs(slope - 1), offset = how.offset / unit, centre = (double)top / divisor;
    double whole = 0, rest = 0;
    int64_t count = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      double all = 0, under = 0;
      std::vector<float> between;
      for (int64_t i = b * kBlock; i < std::min(n, (b + 1) * kBlock); ++i) {
        if (x[i] >= from && x[i] < below) between.push_back(x[i]);
        if (x[i] == removed) {
          REQUIRE(powers[i] == 0);
          continue;
        }
        const float z = x[i] / divisor, argument = (divided ? z : x[i]) - how.offset;
        const double exact = exp2((double)argument * (double)how.slope);
        all += exact;
        if (x[i] < below) under += exact;
        REQUIRE(fabs((double)powers[i] / exact - 1) <= kPowerError + kHalf && powers[i] <= found.most);
        // ... and the weight is as far from the power as chain_flat.cpp says
        const float d = z - max;
        const auto step = [](double v) { return v > 0 ? kHalf * exp2(floor(log2(v))) : 0; };
        const bool same_sign = z * max > 0 && fabs((double)z - (double)max) <= std::min(fabs((double)z), fabs((double)max));
        const double from_top = (double)max - (double)z, apart_by = fabs((divided ? (double)z : (double)x[i]) - how.offset);
        const bool exact_offset = how.offset == 0 || apart_by <= fabs(divided ? (double)z : (double)x[i]);
        if (d < -24) continue;
        const double off = log((double)ts_exp(d)) + (double)max - log((double)powers[i]) - offset + (slope - 1) * (centre - offset);
        const double bound = steep * from_top * (1 + 1e-6) + (same_sign ? 0 : step(from_top)) + (divided || divisor == 1 ? 0 : step(fabs((double)z))) +
                             (exact_offset ? 0 : step(apart_by) / unit) + kExpError + kPowerError + kHalf + 1e-10;
        REQUIRE(fabs(off) <= bound);
      }
      REQUIRE(fabs(sums[2 * b] - all) <= all * (kPowerError + kSumError) && fabs(sums[2 * b + 1] - under) <= under * (kPowerError + kSumError));
      std::vector<float> others(listed.get() + spans[2 * b], listed.get() + spans[2 * b + 1]);
      std::sort(between.begin(), between.end());
      std::sort(others.begin(), others.end());
      REQUIRE(between == others);
      whole += sums[2 * b];
      rest += sums[2 * b + 1];
      count += (int64_t)others.size();
    }
    REQUIRE(count == found.listed && fabs(whole - found.whole) <= 1e-12 * whole && fabs(rest - found.rest) <= 1e-12 * whole);
    const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
    std::fill(listed.get() + count, listed.get() + padded, HUGE_VALF);
    const double sum = flat.powers(listed.get(), padded, &how, u.get()), pivot = real(from, below);
    const TsUnder under = flat.under(listed.get(), u.get(), padded, (float)pivot);
    double expected = 0, total = 0;
    int64_t fewer = 0;
    float prior = -HUGE_VALF, next = HUGE_VALF;
    for (int64_t i = 0; i < count; ++i) {
      total += u[i];
      if (listed[i] < (float)pivot) expected += u[i], ++fewer, prior = std::max(prior, listed[i]);
      else next = std::min(next, listed[i]);
    }
    REQUIRE(fabs(total - sum) <= 1e-12 * total && fabs(expected - under.sum) <= 1e-12 * total);
    REQUIRE(under.count == fewer && under.prior == prior && under.next == next);
    auto some = exactly<float>(room), some_u = exactly<float>(room);
    REQUIRE(flat.pick(listed.get(), u.get(), padded, (float)pivot, below, some.get(), some_u.get()) == count - fewer);
    found.enough = whole * .99;
    REQUIRE(!flat.pass(&row, &how, from, below, &found));  // it leaves early
    found.enough = HUGE_VAL;
    x[pick(0, n - 1)] = trial % 2 ? NAN : HUGE_VALF;
    REQUIRE(!flat.pass(&row, &how, from, below, &found));
  }
  return apart;
}

uint16_t half_of(float v) {  // towards 0
  if (v == -HUGE_VALF) return 0xfc00;
  const uint32_t bits = float_to_bits(v), sign = bits >> 16 & 0x8000, exponent = bits >> 23 & 255;
  if (exponent > 142) return (uint16_t)(sign | 0x7bff);
  return (uint16_t)(exponent < 113 ? sign : sign | (exponent - 112) << 10 | (bits >> 13 & 1023));
}

// Draws from one row by every instruction set, and with a log-probability, for which no estimate is taken: whether all agree.
bool drawn_alike(ts_sample_args args, int64_t *drawn) {
  bool first = true;
  for (const std::string &isa : instruction_sets()) {
    REQUIRE(ts_isa_set(isa.c_str()) == TS_OK);
    for (const bool more : {false, true}) {
      int64_t token = -1;
      uint8_t status = 9;
      float logp;
      args.token = &token, args.status = &status, args.threads = 1;
      args.logp_truncated = more ? &logp : nullptr;
      REQUIRE(ts_sample(&args) == TS_OK && status == TS_ROW_OK);
      if (first) *drawn = token;
      if (token != *drawn) return false;
      first = false;
    }
  }
  return true;
}

}  // namespace

// Every instruction set draws the same tokens of flat rows: with many equal values, far from 0, with tokens at -inf or at what
// masks set instead, hardly flat ones and others too.
void flat_rows() {
  for (uint32_t bits = float_to_bits(-0x1p-30f); bits <= float_to_bits(-24.0f); bits += 101) {
    const float d = bits_to_float(bits);
    REQUIRE(fabs((double)ts_exp(d) / exp((double)d) - 1) <= kExpError);
  }
  int64_t loops = 0;
  for (const std::string &isa : instruction_sets()) {
    REQUIRE(ts_isa_set(isa.c_str()) == TS_OK);
    if (!ts_sampling()->flat) continue;
    ++loops;
    REQUIRE(flat_estimates(*ts_sampling()->flat) > 0);
  }
  const std::vector<float> removed = {-HUGE_VALF, -FLT_MAX, -3e38f, -1e30f, -1e9f, -1e4f};
  for (int trial = 0; trial < 300; ++trial) {
    const int32_t dtype = trial % 3 == 0 ? TS_F32 : trial % 3 == 1 ? TS_BF16 : TS_F16;
    const int64_t n = trial % 20 ? pick(2049, 12000) : pick(100000, 150000), batch = trial % 20 ? 8 : 4;
    auto x = exactly<float>(batch * n);
    auto halves = exactly<uint16_t>(batch * n);
    const double spread = real(.02, .8), shift = trial % 4 ? 0 : trial % 8 ? real(-130, 130) : real(-40, 40);
    const bool ties = trial % 9 == 0 && dtype == TS_F32, rounds = trial % 7 == 0, masks = trial % 11 == 0 || trial % 16 == 0;
    const float mask = removed[(size_t)pick(0, (int64_t)removed.size() - 1)];
    const int64_t often = pick(0, 2);  // one token in 2, 10 or 2000
    for (int64_t i = 0; i < batch * n; ++i) {
      float v = (float)(shift + spread * (real(-1, 1) + real(-1, 1) + real(-1, 1)));
      if (rounds) v = rintf(v * 8) / 8;
      if (ties) v = pick(0, 2) ? (float)real(1.4, 2.4) : 1.9f + (float)pick(0, 3) * 0x1p-23f;  // of which the division makes some equal
      if (trial % 13 == 0 && i % n < 2048) v = v - (float)(2 * spread);  // the first are not like the others
      if (trial % 17 == 0 && i % n == n * 3 / 4) v = v + 20;  // not flat at all
      if (masks && pick(0, often == 0 ? 1 : often == 1 ? 9 : 1999) == 0) v = mask;
      if (dtype == TS_F16) {
        halves[i] = half_of(v);
        v = ts_f16_to_float(halves[i]);
      } else if (dtype == TS_BF16) {
        halves[i] = ts_float_to_bf16(v);
        v = ts_bf16_to_float(halves[i]);
      }
      x[i] = v;
    }
    double temperature = ties ? .86 : trial % 5 == 1 ? .8 : real(.3, 3), p = ties ? real(.5, .65) : real(.2, .98);
    ts_step steps[2] = {made_of(TS_TEMPERATURE, &temperature), made_of(TS_TOP_P, &p)};
    const int64_t first = !ties && trial % 5 == 0;  // without a temperature
    for (int64_t row = 0; row < batch; ++row) {
      const int64_t seed = pick(0, 1 << 30);
      ts_sample_args args = {};
      args.logits = dtype == TS_F32 ? (const void *)(x.get() + row * n) : (const void *)(halves.get() + row * n);
      args.batch = 1, args.vocab = args.row_stride = n, args.dtype = dtype;
      args.steps = steps + first, args.step_count = 2 - first;
      args.seed = args.stream = args.position = &seed;
      int64_t token;
      REQUIRE(drawn_alike(args, &token));
    }
  }
  // Draws that fall next to where one token's share ends and the next one's begins, and limits of top-p next to where one token
  // goes or stays: there no estimate decides.
  constexpr int64_t kTokens = 60000;
  int64_t near = 0, borders = 0, turns = 0;
  for (int trial = 0; trial < 10; ++trial) {
    auto x = exactly<float>(kTokens);
    const double shift = trial % 3 == 1 ? real(-120, -20) : trial % 3 == 2 ? 50 : 0;
    for (int64_t i = 0; i < kTokens; ++i) {
      x[i] = (float)(shift + real(-1, 1) + real(-1, 1));
      if (trial % 4 > 1) x[i] = rintf(x[i] * 8192) / 8192;  // two of a kind
    }
    double p = .9, temperature = trial % 2 ? .8 : 1;
    const ts_step steps[2] = {made_of(TS_TEMPERATURE, &temperature), made_of(TS_TOP_P, &p)};
    std::vector<float> out((size_t)kTokens);
    const int64_t none = 0;
    int64_t token = -1, seed = 0;
    uint8_t status = 9;
    ts_sample_args args = {};
    args.logits = x.get(), args.batch = 1, args.vocab = kTokens, args.row_stride = kTokens, args.dtype = TS_F32;
    args.steps = steps, args.step_count = 2, args.seed = &seed, args.stream = &none, args.position = &none;
    args.token = &token, args.status = &status, args.out_logits = out.data(), args.threads = 1;
    REQUIRE(ts_sample(&args) == TS_OK);
    args.out_logits = nullptr;
    const float max = *std::max_element(out.begin(), out.end());
    std::vector<uint64_t> sums((size_t)kTokens);
    uint64_t total = 0;
    for (size_t i = 0; i < out.size(); ++i) sums[i] = total += out[i] > -HUGE_VALF ? ts_weight(ts_exp(out[i] - max), 0x1p44) : 0;
    const int64_t wanted = near + 12;
    for (seed = 0; near < wanted; ++seed) {
      const uint64_t target = ts_mulhi(ts_uniform_bits(seed, 0, 0, 0), total);
      const auto after = std::upper_bound(sums.begin(), sums.end(), target);
      const uint64_t gap = std::min(*after - target, after == sums.begin() ? total : target - after[-1]);
      if ((double)(int64_t)gap > 1e-9 * (double)(int64_t)total) continue;
      ++near;
      REQUIRE(drawn_alike(args, &token) && token == after - sums.begin());
    }
    std::vector<std::pair<float, uint64_t>> ascending;
    uint64_t all = 0;
    for (int64_t i = 0; i < kTokens; ++i) {
      const float z = x[i] / (float)temperature;
      ascending.push_back({z, ts_weight(ts_exp(z - max), 0x1p44)});
      all += ascending.back().second;
    }
    std::sort(ascending.begin(), ascending.end());
    uint64_t gone = 0;
    for (size_t i = 0; i < ascending.size() / 2; ++i) {
      gone += ascending[i].second;
      if (i < 4000 || i % 997) continue;
      int64_t tokens[2];
      for (int side = 0; side < 2; ++side) {  // the limit is a millionth of a token above or below: it goes or stays
        p = 1 - ((double)(int64_t)gone + (side ? 1e-6 : -1e-6) * (double)(int64_t)ascending[i].second) / (double)(int64_t)all;
        seed = (int64_t)i;
        REQUIRE(drawn_alike(args, &tokens[side]));
      }
      ++borders;
      turns += tokens[0] != tokens[1];
    }
  }
  REQUIRE(turns > borders / 50);  // draws that a wrong guess would spoil
  printf("flat rows: estimates of %lld versions within their bounds, and the same tokens of rows in float32, bfloat16 and float16; %lld limits next "
         "to a token, whose fate changes %lld draws\n",
         (long long)loops, (long long)borders, (long long)turns);
}

// top-p of flat rows whose boundary lies among numbers so near to 0 that parts of a quotient get lost.
void tiny_values() {
  int64_t kept = 0;
  for (int trial = 0; trial < 60; ++trial) {
    const int64_t n = 40000;
    auto x = exactly<float>(n);
    double over = 0, all = 0, near = 0;
    const double heat = trial % 2 ? 1.3 : .7;
    for (int64_t i = 0; i < n; ++i) {
      const bool tiny = pick(0, 15) == 0;
      x[i] = (float)(tiny ? ldexp(real(1, 8), -125) * (pick(0, 1) ? 1 : -1) : real(-1, 1));
      const double e = exp(x[i] / heat);
      all += e;
      if (tiny) near += e;
      else if (x[i] > 0) over += e;
    }
    double p = (over + near * real(.1, .9)) / all, temperature = heat;
    ts_step steps[2] = {};
    steps[0].op = TS_TEMPERATURE, steps[1].op = TS_TOP_P;
    steps[0].dtype = steps[1].dtype = TS_F64;
    steps[0].values = &temperature, steps[1].values = &p;
    std::vector<float> first;
    for (const std::string &isa : instruction_sets()) {
      REQUIRE(ts_isa_set(isa.c_str()) == TS_OK);
      std::vector<float> out((size_t)n);
      uint8_t status = 9;
      int64_t token = -1, seed = trial, none = 0;
      ts_sample_args args = {};
      args.logits = x.get(), args.batch = 1, args.vocab = n, args.row_stride = n, args.dtype = TS_F32;
      args.steps = steps, args.step_count = 2, args.seed = &seed, args.stream = &none, args.position = &none;
      args.token = &token, args.status = &status, args.out_logits = out.data(), args.threads = 1;
      REQUIRE(ts_sample(&args) == TS_OK && status == TS_ROW_OK && out[(size_t)token] > -HUGE_VALF);
      if (first.empty()) first = out;
      REQUIRE(out == first);
    }
    kept += std::count_if(first.begin(), first.end(), [](float z) { return fabsf(z) < 1e-30f; });
  }
  REQUIRE(kept > 0);
  puts("tiny values: what top-p keeps among them is the same everywhere");
}
