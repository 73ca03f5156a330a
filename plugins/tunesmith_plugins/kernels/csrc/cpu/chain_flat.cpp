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

// Let u be a token's power and w its weight, both over their values at the largest token. Then, with d for how far below the
// largest the token's z = x / divisor is and h = 2^-24,
//   |log w - log u| <= (|slope error| + h) d + h |z| + kExpError + kPowerError:
// what slope is off, the roundings of z - max and of z, and what exp (from -24 on; below nothing weighs anything) and the
// power are off (sampling.h).

constexpr double kSteepest = 60;  // largest power of 2

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
  float slope, bound, beyond;  // what stays: from bound on, but of what is less than beyond the first `ties` go ...
  int64_t ties;
  double weight;               // ... whose weight is this
  double r, kept, rest;        // the draw; the mass that is left; that of the pass's rest
  double error, tiny;          // relative and absolute
  double open;                 // the weight of tokens that may stay or go
  double before, rest_before, rest_here;  // what of them is before a block, and in it
};

// Whether it was a flat row, from which flat_token_ is drawn.
bool ChainRow::flat_row(double p) {
  const int64_t blocks = (vocab_ + kBlock - 1) / kBlock;
  const float slope = (float)(1 / ((plan_->temperatures ? (double)divisors_[0] : 1.0) * kLn2));
  TsFlat flat = {flat_sums_.at_least(2 * blocks), flat_spans_.at_least(2 * blocks), between_.at_least(vocab_), 0, 0, 0, 0};
  float from, below;
  if (!guess_flat(1 - p, slope, &from, &below)) return false;
  if (!kernels_->flat->pass(&view_, slope, from, below, &flat)) return false;
  dense_divisors_ = plan_->temperatures;  // least() needs it
  const bool drawn = flat_draw(p, slope, from, below, &flat);
  dense_divisors_ = 0;
  return drawn;
}

// Guesses values between which the boundary of top-p lies if it drops a share of `dropped`.
bool ChainRow::guess_flat(double dropped, float slope, float *from, float *below) {
  constexpr float kSure = 2.4f;  // standard errors
  constexpr int64_t kCoarse = 4, kSome = 4096;
  const int64_t blocks = vocab_ / kBlock, wanted = std::min(std::max(vocab_ / 16, kSome / 2), kSome) / kBlock;
  float *const x = between_.get(), *const u = flat_u_.at_least(vocab_);  // where the list will be
  const int64_t n = pad(x, kernels_->flat->some(&view_, std::max<int64_t>(1, blocks / wanted), x));
  const float whole = (float)kernels_->flat->powers(x, n, slope, u), share = (float)dropped;
  if (!(whole > 0x1p-60f && whole < 0x1p60f) || n > 2 * kSome) return false;  // products of two are to be floats
  // With one in kCoarse of them roughly.
  alignas(64) float some[2 * kSome / kCoarse + kLanes];
  int64_t count = 0, unused;
  for (int64_t i = 0; i < n; i += kCoarse * kLanes, count += kLanes) memcpy(some + count, u + i, kLanes * sizeof(float));
  const float part = kernels_->below(some, count, HUGE_VALF, &unused) * share;
  float low = whole / (float)n / 64, high = low * 256;
  for (int step = 0; step < 5; ++step) {  // a factor of 256 becomes one of 2^(1/4)
    const float middle = sqrtf(low * high);
    (kernels_->below(some, count, middle, &unused) < part ? low : high) = middle;
  }
  const float middle = sqrtf(low * high);
  const float off = kSure * sqrtf(middle * whole * share * ((1 - share) * (1 - share) + 3 * share));  // in units of u
  low = middle;
  high = middle;
  float under, over, limit = share * whole;
  for (int step = 0;; ++step) {
    if (step == 8) return false;
    under = kernels_->below(u, n, low *= 0.9f, &unused);
    if (under < limit - off) break;
  }
  for (int step = 0;; ++step) {
    if (step == 8) return false;
    over = kernels_->below(u, n, high *= 1.1f, &unused);
    if (over > limit + off) break;
  }
  const float steep = (high - low) / (over - under);
  const double scale = 1 / ((double)slope * kLn2);
  *from = (float)(logf(low + (limit - off - under) * steep) * scale);
  *below = (float)(logf(low + (limit + off - under) * steep) * scale);
  return *from < *below;
}

bool ChainRow::flat_draw(double p, float slope, float from, float below, TsFlat *flat) {
  const TsFlatLoops &loops = *kernels_->flat;
  const int64_t blocks = (vocab_ + kBlock - 1) / kBlock, n = pad(flat->x, flat->listed);
  float *const u = flat_u_.get();
  const double listed = loops.powers(flat->x, n, slope, u), whole = flat->whole, rest = flat->rest;
  const double limit = (1 - p) * whole, deepest = rest - listed;
  if (!(deepest > 0 && deepest < limit && limit < rest)) return false;

  // The bounds. What is said of the largest value holds for larger ones too.
  const double divisor = dense_divisors_ ? (double)divisors_[0] : 1.0;
  const double steep = fabs((double)slope * divisor * kLn2 - 1) + 1e-15, power = log((double)flat->most), max = power * (1 + 1e-6) + 1e-3;
  if (!(fabs(max) < kSteepest * kLn2 && (double)from / divisor > -kSteepest * kLn2)) return false;
  const double lowest = (double)from / divisor, size = std::max(fabs(max), fabs(lowest)) + 1e-3;
  const double of_kept = 1.01 * ((steep + kHalf) * (max - lowest) + kHalf * size + kExpError + kPowerError);
  // The mean of d under weights that add up to m is at most log(number / m), and |z| <= |max| + d.
  const double mean_depth = log((double)vocab_ * (double)flat->most / rest) + 1e-3;
  const double of_rest = 1.01 * ((steep + 2 * kHalf) * mean_depth + kHalf * size + kExpError + kPowerError);
  // The weights' own roundings, those of doubles, and of single powers.
  const double tiny = (double)vocab_ * (double)flat->most / plan_->scale + whole * 1e-13 + kHalf * (2 * listed + (double)kBlock * (double)flat->most);
  const double error = p * of_rest * rest + (1 - p) * (of_kept + kSumError) * whole + kSumError * rest + tiny;

  Around around;
  around.x = flat->x;
  around.u = u;
  around.items = n;
  around.base = around.under_low = deepest;
  around.under_to = rest;
  around.from = around.low = from;
  around.upto = around.high = around.to = below;
  around.first = 0;
  around.last = flat->listed;
  const bool closed = around.close_in(loops, limit);
  hint_ = {value_of(around.from, dense_divisors_), value_of(around.upto, dense_divisors_)};
  hinted_ = true;
  if (!closed) return false;

  // With it stays or goes what becomes equal by the division.
  FlatDraw draw;
  const float z = value_of(around.low, dense_divisors_);
  draw.bound = least(z);
  draw.beyond = least(nextafterf(z, HUGE_VALF));
  if (!(draw.bound >= around.from && draw.beyond <= around.upto)) return false;
  const TsUnder under = loops.under(around.x, around.u, around.items, draw.bound);
  const TsUnder upto = loops.under(around.x, around.u, around.items, draw.beyond);
  draw.weight = (upto.sum - under.sum) / (double)(upto.count - under.count);
  const double left = limit - around.base - under.sum;
  if (!(left >= 0 && left < upto.sum - under.sum)) return false;
  draw.ties = (int64_t)(left / draw.weight);
  const double over = left - (double)draw.ties * draw.weight;
  if (draw.ties >= upto.count - under.count || error > .4 * draw.weight) return false;
  // What the bound leaves open: one more token may go, or some stay that add up to little more than one.
  draw.open = std::min(over, draw.weight - over) > error ? 0 : draw.weight + error;

  loops.kept(flat, u, blocks, draw.bound, draw.beyond);
  draw.slope = slope;
  draw.kept = whole - limit + over;
  draw.rest = rest;
  draw.error = of_kept + kSumError;
  draw.tiny = tiny;
  draw.r = (double)ts_uniform_bits(args_->seed[row_], args_->stream[row_], args_->position[row_], args_->draw) * 0x1p-64;
  const double target = draw.r * draw.kept;
  draw.before = draw.rest_before = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t gone = std::min<int64_t>(flat->spans[2 * b], draw.ties);
    const double here = flat->sums[2 * b] - (double)gone * draw.weight;
    draw.rest_here = flat->sums[2 * b + 1];
    if (draw.before + here > target) return flat_in_block(b, draw);
    draw.before += here;
    draw.rest_before += draw.rest_here;
    draw.ties -= gone;
  }
  return false;
}

// The token of the block at which the sum goes beyond r times what is left, if it surely does there and not before.
bool ChainRow::flat_in_block(int64_t block, const FlatDraw &draw) {
  const int64_t begin = block * kBlock, size = std::min(kBlock, vocab_ - begin);
  alignas(64) float x[kBlock], u[kBlock];
  ts_load_row(ts_row(source_, begin, 1, args_->dtype), size, args_->dtype, x);
  std::fill(x + size, x + kBlock, -HUGE_VALF);
  kernels_->flat->powers(x, kBlock, draw.slope, u);
  const double target = draw.r * draw.kept;
  int64_t ties = draw.ties, i = 0;
  double running = draw.before, here = 0;
  for (;; ++i) {
    if (i == size) return false;
    const bool tie = (x[i] >= draw.bound) & (x[i] < draw.beyond), stays = (x[i] >= draw.bound) & !(tie & (ties > 0));
    ties -= tie & (ties > 0);
    here = stays ? (double)u[i] : 0;
    if (running + here > target) break;
    running += here;
  }
  // What the share before and that behind are off counts by the other's share.
  const auto error = [&draw](double before) {
    const double behind = draw.kept - before, rest_behind = draw.rest - draw.rest_before;
    return draw.error * ((1 - draw.r) * before + draw.r * behind) +
           2 * kSumError * ((1 - draw.r) * (draw.rest_before + draw.rest_here) + draw.r * rest_behind) +
           draw.open * std::max(draw.r, 1 - draw.r) + draw.tiny;
  };
  if (target - running <= error(running) || running + here - target <= error(running + here)) return false;
  flat_token_ = begin + i;
  return true;
}
