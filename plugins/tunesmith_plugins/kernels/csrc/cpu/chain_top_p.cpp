// Top-p of a row that is still dense: the boundary is looked for by estimates of masses whose error is bounded, and what these
// leave open is decided by the weights.
#include <float.h>
#include <math.h>
#include <string.h>

#include <algorithm>

#include "chain_row.h"
#include "numeric.h"
#include "short_list.h"

namespace {

// ln(v) of a normal v > 0 within 0.006, and an upper bound of it. The functions of the C library are in a file of their own, and
// after other work in no cache.
float rough_log(float v) {
  const uint32_t bits = float_to_bits(v);
  const float m = bits_to_float((bits & 0x7fffffu) | 0x3f800000u) - 1;
  return 0.6931472f * ((float)((int32_t)(bits >> 23) - 127) + m + 0.344f * m * (1 - m));
}
double log_bound(double v) { return (double)((int64_t)(double_to_bits(v) >> 52) - 1022) * kLn2; }

// Two depths between which something falls through 0, brought together by false position, with a step of the side that lasts
// halved (the Illinois rule).
struct Depths {
  float shallow, left, deep, right;  // depths, and how much is there: above 0 at the one, at most 0 at the other
  int last = 0;                      // the side that moved

  // Where to look next, for a place where it is about -near / 2.
  float between(float near) const {
    const float share = (left + near / 2) / (left - right);
    return shallow + std::min(std::max(share, 0.03f), 0.97f) * (deep - shallow);
  }
  // Takes what was found there; true if that moved the deep end.
  bool take(float depth, float found) {
    if (found > 0) {
      shallow = depth;
      left = found;
      if (last == 1) right /= 2;
      last = 1;
      return false;
    }
    deep = depth;
    right = found;
    if (last == -1) left /= 2;
    last = -1;
    return true;
  }
};

}  // namespace

// In ascending order (ties: lowest id first), drops tokens while the mass so far is at most (1 - p) of the whole, but
// never the last one.
void ChainRow::top_p(double p) {
  if (p >= 1) return;
  if (form_ == kAbove) list_whole();
  if (form_ == kDense) return dense_top_p(p);
  const uint64_t total = weigh_list(), limit = ts_top_p_limit(p, total);
  if (limit >= total) {
    uint64_t largest = 0;
    for (int64_t i = 0; i < n_; ++i) largest += z_[i] == max_;
    keep_beyond(max_, largest - 1);
    return;
  }
  uint64_t before;
  const float threshold = boundary(0, limit, &before);
  keep_beyond(threshold, (limit - before) / ts_weight(ts_exp(threshold - max_), plan_->scale));
}

// ts_boundary of the list, which must have been weighed.
float ChainRow::boundary(uint64_t running, uint64_t limit, uint64_t *before) {
  if (!running && n_ <= kShortList) return ts_short_boundary(z_.get(), w_.get(), n_, max_, limit, before);
  return ts_boundary(z_.get(), w_.get(), n_, weighed_.at_least(vocab_), running, limit, before);
}

void ChainRow::dense_top_p(double p) {
  if (quick_top_p(p)) return;
  const uint64_t total = dense_total(), limit = ts_top_p_limit(p, total);
  if (limit >= total) {
    list_from(max_, HUGE_VALF);
    form_ = kList;
    keep_beyond(max_, (uint64_t)n_ - 1);
    return;
  }
  for (int attempt = 0; attempt < 2; ++attempt) {
    if (narrow(guess((double)limit / plan_->scale, attempt), total, limit)) return;
  }
  narrow({-FLT_MAX, HUGE_VALF}, total, limit);
}

// With the mass of the row known the lanes' maxima alone may reach what has to stay, the share p: then the boundary is not below
// the least of these. False where it takes too many of them.
bool ChainRow::guess_by_lanes(double p, Bracket *bracket) {
  const int64_t lanes = vocab_ / kBlock * kLanes;
  if (scan_mass_ < 0 || vocab_ < 1024) return false;
  float *e = lane_e_.at_least(lanes + kLanes);
  const float divisor = dense_divisors_ ? divisors_[0] : 1.0f;
  kernels_->exps(lanes_.get(), lanes, max_ * divisor, 1 / divisor, e);
  int64_t under = 0;
  const float whole = kernels_->below(e, lanes, HUGE_VALF, &under), allowed = whole - (float)(p * scan_mass_ * 1.0001);
  if (!(allowed > 0)) return false;
  // How much more than what is allowed lies below a depth, as a logarithm; false position as in guess(), since few looks do here.
  constexpr float kNear = 0.08f, kFew = 128, kDeepest = 44;
  const auto excess = [&](float depth) {
    return rough_log(std::max(kernels_->below(e, lanes, ts_exp(-depth), &under) / allowed, 1e-30f));
  };
  Depths ends = {0, rough_log(whole / allowed), 6, excess(6)};
  while (ends.right > 0 && ends.deep < kDeepest) {
    ends.shallow = ends.deep;
    ends.left = ends.right;
    ends.deep = std::min(1.5f * ends.deep, kDeepest);
    ends.right = excess(ends.deep);
  }
  if (ends.right > 0) return false;
  int64_t above = lanes - under;
  for (int step = 0; step < 8 && ends.right < -kNear && (float)above > kFew; ++step) {
    const float depth = ends.between(kNear);
    if (ends.take(depth, excess(depth))) above = lanes - under;
  }
  *bracket = {max_ - ends.deep, HUGE_VALF};
  return above <= lanes / 2;
}

// Guesses values between which the boundary of top-p lies, from the lanes' maxima and a sample of the other tokens.
// `dropped`: the mass that goes, a share of the whole if it is below 0. A wrong guess costs time and nothing else.
ChainRow::Bracket ChainRow::guess(double dropped, int attempt) {
  const Bracket everything = {-FLT_MAX, HUGE_VALF};
  if (vocab_ < 1024) return everything;
  // Of a flat row the sample alone does as well, and takes half the time.
  const bool flat = scan_mass_ == kFlat;
  const int64_t all_lanes = vocab_ / kBlock * kLanes, lanes = flat ? 0 : all_lanes;
  const int64_t stride = std::max<int64_t>(1, all_lanes / 4096);
  const float *lane_x = flat ? nullptr : lanes_.get();
  float *lane_e = lane_e_.at_least(lanes + kLanes), *sample_e = nullptr;
  double divisor = 1;
  for (int32_t t = 0; t < dense_divisors_; ++t) divisor *= divisors_[(size_t)t];
  const float top = (float)(max_ * divisor), slope = (float)(1 / divisor);
  kernels_->exps(lane_x, lanes, top, slope, lane_e);
  int64_t count = 0, padded = 0, lanes_below = 0, sample_below = 0;
  float error = 0, factor = 0;
  const auto look_at_sample = [&] {
    float *sample_x = sample_x_.at_least(all_lanes + kLanes);
    count = kernels_->sample(&rest(), lane_x, stride, sample_x);
    sample_e = sample_e_.at_least(all_lanes + kLanes);
    kernels_->exps(sample_x, count, top, slope, sample_e);
    padded = (count + kLanes - 1) / kLanes * kLanes;
    std::fill(sample_e + count, sample_e + padded, HUGE_VALF);  // never below anything
    factor = (float)(vocab_ - lanes) / (float)std::max<int64_t>(count, 1);
  };
  // The mass below max_ - depth; sets how far off it may be.
  const auto mass_below = [&](float depth) {
    const float e = ts_exp(-depth);
    const float sure = kernels_->below(lane_e, lanes, e, &lanes_below);
    if (!sample_e) return sure;
    const float guessed = kernels_->below(sample_e, padded, e, &sample_below);
    error = factor * sqrtf(e * (guessed + e));
    return sure + factor * guessed;
  };
  const auto number_above = [&] { return (float)(lanes - lanes_below) + factor * (float)(count - sample_below); };
  constexpr float kDeepest = 44;  // below that nothing weighs anything
  float allowed = (float)dropped, doubt = attempt ? 10 : 4;
  // How much more than what is allowed the mass below is with `doubt` times its error, as a logarithm.
  const auto excess = [&](float depth) {
    const float mass = mass_below(depth);
    return logf(fmaxf((mass + doubt * error) / allowed, 1e-30f));
  };
  // A depth at which it is a little less, where the mass of everything is `whole`: the deeper end, once it is near or few tokens
  // are above it.
  const auto depth_of_boundary = [&](float whole, float deep, float further) {
    constexpr float kNear = 0.04f, kFew = 128;
    Depths ends = {0, logf(whole / allowed), deep, excess(deep)};
    while (ends.right > 0 && ends.deep < kDeepest) {
      ends.shallow = ends.deep;
      ends.left = ends.right;
      ends.deep = fminf(further * ends.deep, kDeepest);
      further = fminf(further * further, 2);
      ends.right = excess(ends.deep);
    }
    bool near = ends.right >= -kNear || number_above() <= kFew;
    for (int step = 0; step < 12 && !near; ++step) {
      const float depth = ends.between(kNear);
      if (ends.take(depth, excess(depth))) near = ends.right >= -kNear || number_above() <= kFew;
    }
    return ends.deep;
  };
  look_at_sample();
  float whole = 20 * allowed;
  if (dropped < 0) {
    whole = mass_below(-1) + (float)((double)(int64_t)patched_weights(max_, HUGE_VALF) / plan_->scale);
    allowed *= -whole;
  }
  if (!(allowed > 0)) return {max_ - kDeepest, HUGE_VALF};
  float start = 4, further = 2;
  constexpr int64_t kCoarse = 8;
  if (flat && padded >= kCoarse * 512) {
    // First with one in kCoarse of the sample, so that the whole has to be looked at a few times only.
    float *const all_e = sample_e, once = factor, sure = doubt;
    const int64_t all = padded, some = count;
    count = padded = all / kLanes / kCoarse * kLanes;
    sample_e = lane_e_.at_least(count);
    for (int64_t i = 0; i < count; i += kLanes) memcpy(sample_e + i, all_e + i * kCoarse, kLanes * sizeof(float));
    factor *= (float)some / (float)count;
    doubt *= sqrtf(once / factor);  // as far off as with all of them
    start = 1.02f * depth_of_boundary(whole, 4, 2);
    further = 1.05f;
    sample_e = all_e;
    padded = all;
    count = some;
    factor = once;
    doubt = sure;
  }
  const float deep = depth_of_boundary(whole, start, further);
  Bracket bracket = {max_ - deep, HUGE_VALF};
  float mass = mass_below(deep);
  if (number_above() > fmaxf(2048.0f, (float)vocab_ / 48)) {
    // A list of all that may stay would be long: one from both sides, so tight that one guess in 50 is wrong. Around there
    // the logarithm of the mass is nearly a straight line.
    doubt = attempt ? 10 : 2;
    const float other = deep * 0.9f, before = logf(fmaxf(mass, 1e-30f)), after = logf(fmaxf(mass_below(other), 1e-30f));
    const float slope_of_log = (after - before) / (deep - other);
    if (!(slope_of_log > 1e-3f)) return bracket;
    const float centre = deep - (logf(allowed) - before) / slope_of_log;
    mass = mass_below(centre);
    const float half = logf(1 + doubt * error / allowed) / slope_of_log, off = (logf(allowed) - logf(fmaxf(mass, 1e-30f))) / slope_of_log;
    const float from = centre - off + half, below = centre - off - half;
    bracket = {max_ - from, below > 0 ? max_ - below : HUGE_VALF};
  }
  return bracket;
}

// How far an estimate of a mass may be from the weights.
double ChainRow::doubt_of(double mass) const {
  // The weights are of exp(fl(fl(x / divisor) - max)), the estimate of 2^fl(x * fl(factor) - whole). For a token d below the
  // maximum the quotient's rounding moves the exponent by 2^-24 (|max| + d), the difference's by 2^-24 d and the factor's
  // by 2^-24 d; the mean of d under the weights is their entropy less log(mass), so at most log(vocab / mass). Then come
  // the fused step (2^-26), exp and 2^f themselves and the float32 sums of a block: together below 8e-7. The weights' own
  // rounding is half a step each.
  const double deep = log_bound((double)vocab_ / std::max(mass, 1e-9));
  return mass * 1.1 * (0x1p-24 * (fabs((double)max_) + 3 * deep) + 8e-7) + (double)vocab_ / plan_->scale;
}

// Bounds of the weights' sum of the tokens below `from`, from an estimate; false where there is none to be had.
bool ChainRow::rough_below(float from, uint64_t *low, uint64_t *high) {
  if (!kernels_->rough || dense_divisors_ > 1 || !ts_gentle(dense_divisors_ ? divisors_[0] : 1.0f) || fabsf(max_) > 1e4f) return false;
  const double mass = kernels_->rough(&rest(), max_, least(from)), error = doubt_of(mass);
  const uint64_t patched = patched_weights(max_, from);
  *low = patched + (uint64_t)(std::max(0.0, mass - error) * plan_->scale);
  *high = patched + (uint64_t)((mass + error) * plan_->scale) + 1;
  return true;
}

// The same of all that is not listed, from the estimate that came with the scan.
bool ChainRow::rough_rest(uint64_t *low, uint64_t *high) {
  const double mass = scan_mass_, error = doubt_of(mass);
  if (mass < 0 || fabsf(max_) > 1e4f) return false;
  const uint64_t listed = weigh_list(), least = (uint64_t)(std::max(0.0, mass - error) * plan_->scale);
  const uint64_t most = (uint64_t)((mass + error) * plan_->scale) + 1;
  *low = least > listed ? least - listed : 0;
  *high = most > listed ? most - listed : 0;
  return true;
}

// top-p in one pass over the row at most: on peaked rows an estimate of the mass that is not listed does as well as the
// mass, on flat rows the weights above the list and all others are added up together. False where neither is to be had,
// or the whole mass is asked for anyway.
bool ChainRow::quick_top_p(double p) {
  const bool asked = (args_->logp_raw && !plan_->raw_differs) || (args_->logp_processed && !plan_->processed_differs);
  if (asked || total_known_) return false;
  Bracket bracket = hint_;
  if (!hinted_ && !guess_by_lanes(p, &bracket)) bracket = guess(p - 1, 0);
  if (bracket.above == HUGE_VALF) {
    list_from(bracket.from, bracket.above);
    uint64_t low, high;
    if (rough_rest(&low, &high) && settle(p, low, high)) return true;
    if (rough_below(bracket.from, &low, &high) && settle(p, low, high)) return true;
    const uint64_t total = dense_total(), limit = ts_top_p_limit(p, total);
    return limit < total && find(bracket, 0, total, limit);
  }
  if (shallow_top_p(p, bracket)) return true;
  const int64_t blocks = (vocab_ + kBlock - 1) / kBlock;
  const uint64_t above = kernels_->split(&rest(), max_, plan_->bits, least(bracket.from), least(bracket.above),
                                         blocks_.at_least(blocks), between_.at_least(vocab_), between_ends_.at_least(blocks),
                                         &dense_total_);
  dense_total_ += patched_weights(max_, HUGE_VALF);
  const uint64_t limit = ts_top_p_limit(p, dense_total_);
  if (limit >= dense_total_) return false;
  const int64_t n = between_ends_[blocks - 1];
  for (int32_t t = 0; t < dense_divisors_; ++t) kernels_->divide(between_.get(), n, divisors_[(size_t)t]);
  const uint64_t between = kernels_->weights(between_.get(), n, max_, plan_->bits, between_w_.at_least(vocab_)) + list_patches(bracket.from);
  const uint64_t under = dense_total_ - above - between;
  if (under > limit) return false;
  total_known_ = find_between(bracket, above, between, limit - under, limit - under, 0);
  return total_known_;
}

// Drops what top-p drops of the list if that is the same whatever the others weigh within [low, high].
bool ChainRow::settle(double p, uint64_t low, uint64_t high) {
  const uint64_t listed = weigh_list();
  // If the others weigh u, the list may lose limit(listed + u) - u, which falls as u grows but for the roundings of limit.
  constexpr int64_t kRounding = 1 << 12;
  const int64_t least = (int64_t)ts_top_p_limit(p, listed + high) - (int64_t)high - kRounding;
  const int64_t most = (int64_t)ts_top_p_limit(p, listed + low) - (int64_t)low + kRounding;
  if (least < 0 || most >= (int64_t)listed) return false;
  uint64_t before;
  const float threshold = boundary(0, (uint64_t)least, &before);
  const uint64_t weight = ts_weight(ts_exp(threshold - max_), plan_->scale);
  const uint64_t ties = ((uint64_t)least - before) / weight;
  if (((uint64_t)most - before) / weight != ties) return false;
  keep_beyond(threshold, ties);
  form_ = kList;
  return true;
}

// Looks for the boundary of top-p in a bracket; false if it is elsewhere.
bool ChainRow::narrow(Bracket bracket, uint64_t total, uint64_t limit) {
  list_from(bracket.from, bracket.above);
  const bool open = bracket.above == HUGE_VALF;
  const uint64_t above =
      open ? 0 : kernels_->mass(&rest(), max_, plan_->bits, least(bracket.above), blocks_.get());
  return find(bracket, above, total, limit);
}

// The same when the tokens between are listed and the mass above is known.
bool ChainRow::find(Bracket bracket, uint64_t above, uint64_t total, uint64_t limit) {
  const bool open = bracket.above == HUGE_VALF;
  const uint64_t listed = weigh_list(), under = total - above - listed;
  if (under > limit || under + listed <= limit) return false;
  uint64_t before;
  const float threshold = boundary(under, limit, &before);
  if (!open && threshold >= bracket.above) return false;
  threshold_ = threshold;
  ties_ = (limit - before) / ts_weight(ts_exp(threshold - max_), plan_->scale);
  keep_beyond(threshold_, ties_);
  form_ = open ? kList : kAbove;
  from_ = bracket.above;
  between_known_ = false;
  kept_ = above + list_total_;
  return true;
}

// The patched tokens of at least `from` alone as the list; returns their weights' sum.
uint64_t ChainRow::list_patches(float from) {
  n_ = merge_patches(0, from);
  list_weighed_ = false;
  return weigh_list();
}

// top-p of a flat row by the sums of shallow(): those of all that may stay are exact.
bool ChainRow::shallow_top_p(double p, Bracket bracket) {
  constexpr float kLeast = 1.001f * 0x1p23f / (float)(1 << kFraction);
  if (!kernels_->shallow || ts_exp(bracket.from - max_) < kLeast) return false;
  const int64_t blocks = (vocab_ + kBlock - 1) / kBlock;
  TsShallow sums = {blocks_.at_least(blocks), between_.at_least(vocab_), between_w_.at_least(vocab_), between_ends_.at_least(blocks), 0, 0, 0};
  if (!kernels_->shallow(&rest(), max_, plan_->bits, least(bracket.from), least(bracket.above), &sums)) return false;
  const int64_t n = sums.ends[blocks - 1];
  uint64_t between = 0;
  for (int64_t i = 0; i < n; ++i) between += sums.w[i];
  const uint64_t unlisted = sums.near - between, patched = patched_weights(max_, bracket.from);
  const uint64_t low = patched + (unlisted > sums.error ? unlisted - sums.error : 0), high = patched + unlisted + sums.error;
  between += list_patches(bracket.from);
  // Of what is listed limit(all) - u may go where the others weigh u, which falls as u grows but for the roundings of limit.
  constexpr int64_t kRounding = 1 << 12;
  const uint64_t listed = sums.above + between;
  const int64_t most = (int64_t)ts_top_p_limit(p, listed + low) - (int64_t)low + kRounding;
  const int64_t fewest = (int64_t)ts_top_p_limit(p, listed + high) - (int64_t)high - kRounding;
  // Of numbers near 0 a part of the quotient that shallow() lists may have been lost.
  const float smallest = dense_divisors_ ? 0x1p-64f : 0.0f;
  return fewest >= 0 && find_between(bracket, sums.above, between, (uint64_t)fewest, (uint64_t)most, smallest);
}

// The same when the tokens between are in between_, and the mass that goes of them and of the list is from `least` to
// `most`, whichever: false too if that makes a difference. No ids are needed: what is drawn from such a row is looked up in
// its block.
bool ChainRow::find_between(Bracket bracket, uint64_t above, uint64_t between, uint64_t least, uint64_t most, float smallest) {
  if (most >= between) return false;
  const int64_t n = between_ends_[(vocab_ + kBlock - 1) / kBlock - 1];
  float *z = between_.get();
  uint64_t *w = between_w_.get();
  memcpy(z + n, z_.get(), (size_t)n_ * sizeof(float));
  memcpy(w + n, w_.get(), (size_t)n_ * sizeof(uint64_t));
  const int64_t all = n + n_;
  const auto below = [&](float pivot, int64_t *count) { return kernels_->weights_below(z, w, all, pivot, count); };
  int64_t inside = n;
  const uint64_t upto = n_ ? below(bracket.above, &inside) : between;  // patched tokens may be above
  if (upto <= least) return false;
  uint64_t before;
  const float threshold = ts_boundary(z, w, all, {bracket.from, bracket.above, upto, inside}, weighed_.at_least(vocab_), least, &before, below);
  if (fabsf(threshold) < smallest) return false;
  const uint64_t weight = ts_weight(ts_exp(threshold - max_), plan_->scale), ties = (least - before) / weight;
  if ((most - before) / weight != ties) return false;
  // Which of equals go depends on ids, which only the list has: of patched tokens, and by any rule but that of the highest.
  if (ties && rule_ != TS_TIES_HIGH) return false;
  if (ties && std::find(z_.get(), z_.get() + n_, threshold) != z_.get() + n_) return false;
  keep_beyond(threshold, 0);
  form_ = kAbove;
  from_ = bracket.above;
  threshold_ = threshold;
  ties_ = ties;
  kept_ = above + between - before - ties * weight;
  between_known_ = true;
  return true;
}
