// A draw from a flat row after a top-p and a temperature at most, where nothing else is asked for: one pass over the row for
// estimates of masses and a list around the boundary. The estimates' error is bounded, and mostly the bound leaves one
// token. If not, or if the row is not what it seemed, it is done as any other row.
#include <float.h>
#include <math.h>
#include <string.h>

#include <algorithm>

#include "chain_row.h"
#include "load.h"
#include "numeric.h"

namespace {

// Let u be a token's power (TsPowers, with slope s) and w its weight, over its value at the largest token. With z = fl(f(x)) as
// the chain divides, d for how far z is below the largest and h = 2^-24, log w - log u is, but for what all tokens have in
// common, off by no more than the sum of
//   - kExpError (from d = 24 on nothing weighs anything; sampling.h) and kPowerError;
//   - what s is off, as a share, times how far z is from any value that is the same for all tokens;
//   - half a step of z - max, h 2^floor(log2 d), or 0 where the subtraction is exact: where z and max have one sign and d is less
//     than both (Sterbenz);
//   - half a step of the quotient, h 2^floor(log2 |z|), unless there is none or powers are of the quotient itself;
//   - half a step of the difference from the offset, which is an integer, so that it is exact where it is no larger than what it
//     was taken from.
// A power is 0 where lowest or less stands, 1000 powers of 2 below the offset: such a token is more than 86 below the largest,
// since the largest power is more than 2^-60, and its weight is 0 too.

constexpr double kSteepest = 60;  // largest power of 2
constexpr double kDeepest = 1000;
constexpr float kNear = 16;       // largest values further from 0 than that are taken less an offset

// The largest power of 2 that is no more than v.
double binade(double v) { return v > 0 ? exp2(floor(log2(v))) : 0; }

// Whether a - b is exact for all a and b of [low, high], and half a step of one otherwise.
double half_step(double low, double high) {
  const bool exact = low * high > 0 && high - low <= std::min(fabs(low), fabs(high));
  return exact ? 0 : kHalf * binade(high - low);
}

int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// +inf up to a multiple of 16.
int64_t pad(float *x, int64_t n) {
  std::fill(x + n, x + padded(n), HUGE_VALF);
  return padded(n);
}

// Looks for the value at which a sum of weights in ascending order of values goes beyond a limit.
struct Around {
  static constexpr int64_t kPicked = 1008;
  const float *x, *u;   // the items: all values from `from` on and less than `upto`, and their weights
  int64_t items;
  double base;          // the weights' sum of all values before them
  float from, upto;
  // The value is one of low ... high, and less than `to`.
  float low, high, to;
  double under_low, under_to;
  int64_t first, last;  // how many items are less than low, and than to
  alignas(64) float some_x[kPicked + kLanes], some_u[kPicked + kLanes];

  // All that are listed.
  void restart(const TsFlat &flat, const float *weights, int64_t n, double deepest, float least, float beyond) {
    x = flat.x;
    u = weights;
    items = n;
    base = deepest;
    from = least;
    upto = beyond;
  }

  void look(const TsFlatLoops &loops, double limit, float pivot, float *edge) {
    const TsUnder found = loops.under(x, u, items, pivot);
    if (base + found.sum > limit) {
      to = pivot;
      high = found.prior;
      under_to = base + found.sum;
      last = found.count;
    } else {
      *edge = pivot;
      low = found.next;
      under_low = base + found.sum;
      first = found.count;
    }
  }

  // Leaves it as low. The sum rises nearly as a straight line does.
  bool close_in(const TsFlatLoops &loops, double limit) {
    constexpr int kTurns = 40, kStraight = 8;
    constexpr int64_t kFew = 48;
    float edge = from;
    for (int turn = 0; turn < kTurns; ++turn) {
      if (!(low < high)) return true;
      const int64_t inside = last - first;
      const float begin = low, width = to - low;
      const float share = (float)((limit - under_low) / (under_to - under_low));
      if (turn < 2 && inside > kFew) {
        const float margin = (float)((1.2 * sqrt((double)inside) + 4) / (double)inside);
        for (const float at : {share - margin, share + margin}) {
          const float pivot = begin + at * width;
          if (pivot > low && pivot < to) look(loops, limit, pivot, &edge);
        }
      } else {
        const float pivot = turn < kStraight ? begin + share * width : low + (high - low) / 2;
        look(loops, limit, pivot > low && pivot <= high ? pivot : high, &edge);
      }
      if (items > kPicked && last - first <= kPicked) {
        const int64_t count = loops.pick(x, u, items, edge, to, some_x, some_u);
        x = some_x;
        u = some_u;
        items = pad(some_x, count);
        base = under_low;
        from = edge;
        upto = to;
        first = 0;
        last = count;
      }
    }
    return false;
  }
};

}  // namespace

struct ChainRow::FlatDraw {
  TsPowers powers;
  float bound, beyond;  // what stays: from bound on, but of what is less than beyond some with the lowest ids go ...
  double weight;        // ... each of which weighs this
  double r, whole, before;  // the draw; all mass; that of what is less than bound
  double rest;          // the sum of the pass's rest
  double error, tiny;   // relative and absolute
};

// Whether it was a flat row, from which flat_token_ is drawn.
bool ChainRow::flat_row(double p) {
  const int64_t blocks = (vocab_ + kBlock - 1) / kBlock;
  TsFlat flat = {flat_sums_.at_least(2 * blocks), flat_spans_.at_least(2 * blocks), between_.at_least(vocab_), 0, 0, 0, 0, 0};
  TsPowers powers;
  float from, below;
  if (!guess_flat(1 - p, &powers, &from, &below, &flat.enough)) return false;
  if (!kernels_->flat->pass(&view_, &powers, from, below, &flat)) return false;
  dense_divisors_ = plan_->temperatures;  // least() needs it
  const bool drawn = flat_draw(p, powers, from, below, &flat);
  dense_divisors_ = 0;
  return drawn;
}

// Guesses values between which the boundary of top-p lies if it drops a share of `dropped`, and says what powers to take and what
// mass the row hardly has. False where the pass would be in vain.
bool ChainRow::guess_flat(double dropped, TsPowers *powers, float *from, float *below, double *enough) {
  constexpr float kSure = 2.4f;  // standard errors
  constexpr int64_t kCoarse = 4, kSome = 4096;
  constexpr double kFew = 1.0 / 16, kError = 2.8e-6, kHopeless = .4;
  const TsFlatLoops &loops = *kernels_->flat;
  const int64_t blocks = vocab_ / kBlock, wanted = std::min(std::max(vocab_ / 16, kSome / 2), kSome) / kBlock;
  const int64_t step = std::max<int64_t>(1, blocks / wanted);
  float *const x = between_.get(), *const u = flat_u_.at_least(vocab_);  // where the list will be
  float largest;
  const int64_t n = pad(x, loops.some(&view_, step, x, &largest));
  if (!n || n > 2 * kSome) return false;

  const float divisor = plan_->temperatures ? divisors_[0] : 1.0f;
  const float top = largest / divisor;
  if (!(fabsf(top) < 0x1p20f)) return false;
  const bool apart = fabsf(top) > kNear, quotient = apart && plan_->temperatures && loops.divides(divisor);
  powers->divisor = quotient ? divisor : 0;
  powers->offset = apart ? rintf(quotient ? top : largest) : 0;
  powers->slope = (float)(1 / ((quotient ? 1.0 : (double)divisor) * kLn2));
  const double unit = quotient ? (double)divisor : 1.0;  // of f(x), in x
  powers->lowest = (float)(((double)powers->offset - kDeepest / (double)powers->slope) * unit);

  const float whole = (float)loops.powers(x, n, powers, u), share = (float)dropped;
  if (!(whole > 0x1p-60f && whole < 0x1p60f)) return false;  // products of two are to be floats
  int64_t nothing, unused;
  kernels_->below(u, n, whole * 0x1p-40f, &nothing);  // what some mask removed
  const float mean = whole / (float)std::max<int64_t>(1, n - nothing);
  // With one in kCoarse of them roughly.
  alignas(64) float some[2 * kSome / kCoarse + kLanes];
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += kCoarse * kLanes, count += kLanes) memcpy(some + count, u + i, kLanes * sizeof(float));
  const float part = kernels_->below(some, count, HUGE_VALF, &unused) * share;
  float low = mean / 64, high = low * 256;
  for (int halving = 0; halving < 5; ++halving) {  // a factor of 256 becomes one of 2^(1/4)
    const float middle = sqrtf(low * high);
    (kernels_->below(some, count, middle, &unused) < part ? low : high) = middle;
  }
  const float middle = sqrtf(low * high);
  const double whole_row = (double)whole * (double)blocks / (double)((blocks - 1 - step / 2) / step + 1);
  *enough = 2 * whole_row;
  const double heaviest = exp2(((double)(quotient ? top : largest) - (double)powers->offset) * (double)powers->slope);
  if (heaviest > kFew * (double)whole || kError * dropped * whole_row > kHopeless * (double)middle) return false;

  const float off = kSure * sqrtf(middle * whole * share * ((1 - share) * (1 - share) + 3 * share));  // in units of u
  low = middle;
  high = middle;
  float under, over, limit = share * whole;
  for (int widening = 0;; ++widening) {
    if (widening == 8) return false;
    under = kernels_->below(u, n, low *= 0.9f, &unused);
    if (under < limit - off) break;
  }
  for (int widening = 0;; ++widening) {
    if (widening == 8) return false;
    over = kernels_->below(u, n, high *= 1.1f, &unused);
    if (over > limit + off) break;
  }
  // Between there the sum rises as a straight line does, unless many values are equal.
  const float steep = (high - low) / (over - under);
  float first = low + (limit - off - under) * steep, last = low + (limit + off - under) * steep;
  if (kernels_->below(u, n, first, &unused) > limit - .85f * off) first = low;
  if (kernels_->below(u, n, last, &unused) < limit + .85f * off) last = high;
  const double scale = unit / ((double)powers->slope * kLn2), origin = (double)powers->offset * unit;
  *from = (float)(origin + logf(first) * scale);
  *below = (float)(origin + logf(last) * scale);
  return *from < *below;
}

bool ChainRow::flat_draw(double p, const TsPowers &powers, float from, float below, TsFlat *flat) {
  const TsFlatLoops &loops = *kernels_->flat;
  const int64_t blocks = (vocab_ + kBlock - 1) / kBlock, n = pad(flat->x, flat->listed);
  float *const u = flat_u_.get();
  const double listed = loops.powers(flat->x, n, &powers, u), whole = flat->whole, rest = flat->rest;
  const double limit = (1 - p) * whole, deepest = rest - listed;
  if (!(deepest > 0 && deepest < limit && limit < rest)) return false;

  // The bounds, of what is kept at least from `from` on. What is said of the largest value holds for larger ones too.
  const double divisor = dense_divisors_ ? (double)divisors_[0] : 1.0, unit = powers.divisor != 0 ? 1.0 : divisor;
  const double slope = (double)powers.slope * unit * kLn2, steep = fabs(slope - 1) + 1e-15, offset = (double)powers.offset / unit;
  const double power = log((double)flat->most), max = offset + power + fabs(power) * 1e-6 + 1e-3, lowest = (double)from / divisor - 1e-3;
  if (!(fabs(max - offset) < kSteepest * kLn2 && lowest - offset > -kSteepest * kLn2)) return false;
  const double depth = max - lowest, size = std::max(fabs(max), fabs(lowest)), shift = std::max(fabs(max - offset), fabs(lowest - offset));
  const bool rounded = dense_divisors_ && powers.divisor == 0, shifts = powers.offset != 0;
  // It is exact where it is no larger than the value itself.
  const bool exact = lowest * max > 0 && shift <= std::min(fabs(max), fabs(lowest));
  const double common = kExpError + kPowerError, quotients = rounded ? kHalf * binade(size) : 0;
  const double of_kept = 1.001 * (steep * depth / 2 + half_step(lowest, max) + quotients + (shifts && !exact ? kHalf * binade(shift) : 0) + common);
  // Of what is below: the mean of d under weights that add up to m is at most log(number / m), |z| <= size + d, and so on.
  const double mean_depth = log((double)vocab_ * (double)flat->most / rest) + 1e-3;
  const double of_rest = 1.001 * (steep * (mean_depth + depth / 2) + kHalf * mean_depth + (rounded ? kHalf * (size + mean_depth) : 0) +
                                  (shifts ? kHalf * (shift + mean_depth) : 0) + common);
  // The weights' own roundings, those of doubles, and of single powers.
  const double tiny = (double)vocab_ * (double)flat->most / plan_->scale + whole * 1e-13 + kHalf * (2 * listed + (double)kBlock * (double)flat->most);
  const double error = p * of_rest * rest + (1 - p) * (of_kept + kSumError) * whole + kSumError * rest + tiny;

  Around around;
  around.restart(*flat, u, n, deepest, from, below);
  around.under_low = deepest;
  around.under_to = rest;
  around.low = from;
  around.high = around.to = below;
  around.first = 0;
  around.last = flat->listed;
  const bool closed = around.close_in(loops, limit);
  hint_ = {value_of(around.from, dense_divisors_), value_of(around.upto, dense_divisors_)};
  hinted_ = true;
  if (!closed) return false;

  // What becomes equal by the division stays or goes by ids, one after the other.
  FlatDraw draw;
  int64_t equal;
  const auto set = [&](float at, float *prior) {
    const float z = value_of(at, dense_divisors_);
    draw.bound = least(z);
    draw.beyond = least(nextafterf(z, HUGE_VALF));
    if (!(draw.bound >= around.from && draw.beyond <= around.upto)) around.restart(*flat, u, n, deepest, from, below);
    if (!(draw.bound >= from && draw.beyond <= below)) return false;
    const TsUnder under = loops.under(around.x, around.u, around.items, draw.bound);
    const TsUnder upto = loops.under(around.x, around.u, around.items, draw.beyond);
    *prior = under.prior;
    equal = upto.count - under.count;
    draw.weight = (upto.sum - under.sum) / (double)equal;
    draw.before = around.base + under.sum;
    return error <= .4 * draw.weight;
  };
  float prior, unused;
  if (!set(around.low, &prior)) return false;
  const double left = limit - draw.before;
  int64_t ties = (int64_t)(left / draw.weight);
  const double over = left - (double)ties * draw.weight;
  if (!(left >= 0 && ties < equal)) return false;
  // The bound may leave one token open, no more: one that would go last or stay first.
  int64_t more = 0;
  if (draw.weight - over <= error) {
    more = 1;
  } else if (over <= error) {
    more = 1;
    if (ties == 0) {
      if (!(prior > -HUGE_VALF) || !set(prior, &unused)) return false;
      ties = equal;
    }
    --ties;
  }

  loops.kept(flat, u, blocks, draw.bound, draw.beyond);
  draw.powers = powers;
  draw.whole = whole;
  draw.rest = rest;
  draw.error = of_kept + kSumError;
  draw.tiny = tiny;
  draw.r = (double)ts_uniform_bits(args_->seed[row_], args_->stream[row_], args_->position[row_], args_->draw) * 0x1p-64;
  const int64_t token = flat_token(*flat, draw, ties);
  if (token < 0 || (more && flat_token(*flat, draw, ties + 1) != token)) return false;
  flat_token_ = token;
  return true;
}

// The token at which the sum goes beyond r times what is left when so many ties go; -1 if another's share may be as near.
int64_t ChainRow::flat_token(const TsFlat &flat, const FlatDraw &draw, int64_t ties) {
  const double kept = draw.whole - draw.before - (double)ties * draw.weight, target = draw.r * kept;
  const int64_t blocks = (vocab_ + kBlock - 1) / kBlock;
  double running = 0, rest_before = 0;
  int64_t block = 0;
  for (;; ++block) {
    if (block == blocks) return -1;
    const int64_t gone = std::min<int64_t>(flat.spans[2 * block], ties);
    const double here = flat.sums[2 * block] - (double)gone * draw.weight;
    if (running + here > target) break;
    running += here;
    rest_before += flat.sums[2 * block + 1];
    ties -= gone;
  }
  // What the share before and that behind are off counts by the other's share.
  const double rest_behind = draw.rest - rest_before, rest_upto = rest_before + flat.sums[2 * block + 1];
  const auto error = [&](double before) {
    return draw.error * ((1 - draw.r) * before + draw.r * (kept - before)) +
           2 * kSumError * ((1 - draw.r) * rest_upto + draw.r * rest_behind) + draw.tiny;
  };
  const int64_t begin = block * kBlock, size = std::min(kBlock, vocab_ - begin);
  alignas(64) float x[kBlock], u[kBlock];
  std::fill(x, x + kBlock, -HUGE_VALF);
  ts_load_row(ts_row(source_, begin, 1, args_->dtype), size, args_->dtype, x);
  kernels_->flat->powers(x, kBlock, &draw.powers, u);
  for (int64_t i = 0; i < size; ++i) {
    const bool tie = (x[i] >= draw.bound) & (x[i] < draw.beyond), stays = (x[i] >= draw.bound) & !(tie & (ties > 0));
    ties -= tie & (ties > 0);
    const double here = stays ? (double)u[i] : 0;
    if (running + here > target) {
      const bool sure = target - running > error(running) && running + here - target > error(running + here);
      return sure ? begin + i : -1;
    }
    running += here;
  }
  return -1;
}
