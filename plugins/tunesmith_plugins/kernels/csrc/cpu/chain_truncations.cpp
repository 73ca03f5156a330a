// Truncations by probability, surprise, spread and entropy. Every sum is over integers, as in reference_truncations.py.
#include <float.h>
#include <math.h>
#include <string.h>

#include <algorithm>

#include "chain_row.h"
#include "chain_values.h"
#include "numeric.h"
#include "truncations.h"

void ChainRow::likely(const ts_step &step, double value) {
  if (form_ == kAbove) list_whole();
  const double second = step.second ? step.second[row_ * step.second_stride] : 0;
  switch (step.op) {
    case TS_EPSILON:
      if (value > 0) min_p(ts_least_likely(value, mass_of_row()));
      break;
    case TS_TOP_A:
      if (value > 0) min_p(ts_top_a_least(value, mass_of_row()));
      break;
    case TS_ETA: {
      if (!ts_eta_cuts(value)) break;
      const double least = ts_least_likely(value, mass_of_row()), depth = ts_eta_depth(value, mean_depth());
      if (form_ == kDense) {
        // A little lower than both limits, whatever the rounding of exp.
        list_from((float)std::max(-(double)FLT_MAX, (double)max_ + std::min(log(least), depth) - 1e-3), HUGE_VALF);
        form_ = kList;
      }
      float *e = e_.at_least(vocab_);
      kernels_->exps(z_.get(), n_, max_, 1, e);
      filter([=](int64_t i) { return ts_eta_keeps(z_[i] - max_, e[i], least, depth); });
      break;
    }
    case TS_TOP_N_SIGMA:
      top_n_sigma(value);
      break;
    case TS_TYPICAL:
      typical(value, second);
      break;
    case TS_TOP_H:
      top_h(value, second);
      break;
    default:
      if (second != 0) xtc(value);
      look_at(max_);
  }
}

// The mass of what is left in units of its likeliest token.
double ChainRow::mass_of_row() {
  const uint64_t total = form_ == kDense ? dense_total() : weigh_list();
  return ts_mass(total, plan_->scale);
}

// The mean of max - z, by probability: the entropy is this and the logarithm of the mass.
double ChainRow::mean_depth() {
  const uint64_t total = form_ == kDense ? dense_total() : weigh_list();
  uint64_t sum = 0;
  const double scale = plan_->scale;
  const float max = max_;
  over_values([&](const float *z, int64_t count) {
    float e[kBlock];
    kernels_->exps(z, count, max, 1, e);
    uint64_t here = 0;
    for (int64_t i = 0; i < count; ++i) here += ts_depth(z[i] - max, e[i], scale);
    sum += here;
  });
  return ts_mean_depth(sum, total);
}

void ChainRow::list_all() {
  if (form_ == kDense) {
    list_from(-FLT_MAX, HUGE_VALF);
    form_ = kList;
  } else {
    filter([this](int64_t i) { return z_[i] > -HUGE_VALF; });
  }
}

void ChainRow::top_n_sigma(double n) {
  const double highest = max_, scale = plan_->scale;
  float lowest = max_;
  over_values([&](const float *z, int64_t count) {
    for (int64_t i = 0; i < count; ++i) lowest = z[i] < lowest && z[i] > -HUGE_VALF ? z[i] : lowest;
  });
  const double extent = highest - (double)lowest, inverse = ts_sigma_inverse(extent);
  uint64_t first = 0, second = 0;
  int64_t finite = 0;
  over_values([&](const float *z, int64_t count) {
    uint64_t firsts = 0, seconds = 0;
    int64_t some = 0;
    for (int64_t i = 0; i < count; ++i) {
      const bool here = z[i] > -HUGE_VALF;
      const double u = here ? (highest - (double)z[i]) * inverse : 0.0;
      firsts += ts_fixed(u, scale);
      seconds += ts_fixed(u * u, scale);
      some += here;
    }
    first += firsts;
    second += seconds;
    finite += some;
  });
  const double bound = ts_sigma_bound(n, highest, extent, first, second, finite, scale);
  if (form_ == kDense) {
    // Rounded to float32 the bound may be a little high: one float lower everything that reaches it is listed.
    const float from = bound < -FLT_MAX ? -FLT_MAX : nextafterf((float)bound, -HUGE_VALF);
    list_from(std::max(from, -FLT_MAX), HUGE_VALF);
    form_ = kList;
  }
  filter([=](int64_t i) { return (double)z_[i] >= bound; });
}

void ChainRow::typical(double mass, double least) {
  if (mass >= 1) return;
  const double depth = mean_depth();
  list_all();
  const uint64_t wanted = ts_typical_wanted(mass, weigh_list());
  Weighed *items = weighed_.at_least(vocab_);
  float *distance = e_.at_least(vocab_);
  for (int64_t i = 0; i < n_; ++i) {
    distance[i] = ts_typical_distance(z_[i] - max_, depth);
    items[i] = {distance[i], w_[i]};
  }
  uint64_t before;
  float bound = ts_boundary(items, n_, 0, wanted - 1, &before);
  const int64_t fewest = least < (double)n_ ? (int64_t)least : n_;
  if (fewest > 1) {
    const float last = kernels_->kth(distance, n_, n_ - fewest + 1, select_.at_least(2 * vocab_ + 2 * kLanes));
    bound = std::max(bound, last);
  }
  filter([=](int64_t i) { return distance[i] <= bound; });
  remax();
}

void ChainRow::top_h(double h, double candidates) {
  if (candidates < (double)vocab_) top_k(candidates);
  list_all();
  const int64_t count = candidates < (double)n_ ? (int64_t)candidates : n_;
  std::vector<int32_t> &order = chosen_;  // places in the list, the likeliest first, equals by id
  order.resize((size_t)n_);
  for (int64_t i = 0; i < n_; ++i) order[(size_t)i] = (int32_t)i;
  const float *z = z_.get();
  std::partial_sort(order.begin(), order.begin() + count, order.end(),
                    [z](int32_t a, int32_t b) { return z[a] > z[b] || (z[a] == z[b] && a < b); });
  weigh_list();
  float *e = e_.at_least(vocab_);
  kernels_->exps(z, n_, max_, 1, e);
  uint64_t weight = 0, depth = 0;
  const auto deepen = [&](int64_t i) {
    const int32_t place = order[(size_t)i];
    weight += w_[place];
    depth += ts_depth(z[place] - max_, e[place], plan_->scale);
  };
  for (int64_t i = 0; i < count; ++i) deepen(i);
  const double log_mass = ts_log(ts_mass(weight, plan_->scale));
  const double limit = h * ts_top_h_spent(log_mass, weight, depth);
  weight = depth = 0;
  int64_t kept = 0;
  for (; kept < count; ++kept) {
    deepen(kept);
    if (kept && !(ts_top_h_spent(log_mass, weight, depth) <= limit)) break;
  }
  order.resize((size_t)kept);
  std::sort(order.begin(), order.end());
  for (int64_t i = 0; i < kept; ++i) {
    ids_[i] = ids_[order[(size_t)i]];
    z_[i] = z_[order[(size_t)i]];
  }
  n_ = kept;
  list_weighed_ = false;
}

void ChainRow::xtc(double threshold) {
  const double mass = mass_of_row(), least = threshold * mass, log_mass = ts_log(mass);
  float bound = max_;
  const auto look = [&](const float *z, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      if (z[i] < bound && z[i] > -HUGE_VALF && ts_xtc_choice(z[i] - max_, least, log_mass)) bound = z[i];
    }
  };
  if (least > 1) return;  // not even the likeliest is above the threshold
  if (form_ == kDense && threshold > 1e-36) {
    // Few can be that likely: the dense row is kept, and only they are looked at.
    list_from((float)((double)max_ + log(least) - 1e-3), HUGE_VALF);
    look(z_.get(), n_);
    n_ = 0;
  } else {
    over_values(look);
  }
  if (form_ == kDense) hide_above(bound);
  else filter([=](int64_t i) { return z_[i] <= bound; });
  remax();
}

// Removes what is larger from a dense row.
void ChainRow::hide_above(float z) {
  const int64_t blocks = (vocab_ + kBlock - 1) / kBlock;
  const uint16_t *before = view_.marks;
  uint16_t *marks = hidden_.at_least(blocks * kBlockGroups);
  if (!before) memset(marks, 0, (size_t)(blocks * kBlockGroups) * sizeof *marks);
  else if (before != marks) memcpy(marks, before, (size_t)(blocks * kBlockGroups) * sizeof *marks);
  list_from(z, HUGE_VALF);  // with those that equal it, which stay
  for (int64_t i = 0; i < n_; ++i) {
    if (z_[i] > z) marks[ids_[i] / kLanes] = (uint16_t)(marks[ids_[i] / kLanes] | 1u << (ids_[i] % kLanes));
  }
  n_ = 0;
  if (plan_->patches) {
    for (int64_t i = 0; i < patches_.size(); ++i) {
      if (patches_.z[i] > z) patches_.z[i] = -HUGE_VALF;
    }
  }
  show_marks();
}
