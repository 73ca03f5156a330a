// The limits of the truncations by probability, surprise, spread and entropy, as functions of sums over integers. Shared by
// the CPU and the CUDA library; reference_truncations.py says the same in torch. d is x - max, e is exp(d), and a mass is in
// units of the likeliest token.
#pragma once

#include <float.h>
#include <math.h>

#include "numeric.h"

namespace {

TS_HD double ts_mass(uint64_t total, double scale) { return (double)(int64_t)total / scale; }

// The mean of -d by probability: the entropy is this and the logarithm of the mass.
TS_HD double ts_mean_depth(uint64_t depths, uint64_t total) { return (double)(int64_t)depths / (double)(int64_t)total; }

// epsilon, and one of eta's two limits: what has less e goes. The likeliest never does.
TS_HD double ts_least_likely(double value, double mass) {
  const double least = value * mass;
  return least < 1.0 ? least : 1.0;
}

// eta keeps what reaches one of its limits; below the smallest normal number it keeps all.
TS_HD bool ts_eta_cuts(double value) { return value >= DBL_MIN; }
TS_HD double ts_eta_depth(double value, double mean_depth) { return 0.5 * ts_log(value) - mean_depth; }
TS_HD bool ts_eta_keeps(float d, float e, double least, double depth) { return (double)e >= least || (double)d >= depth; }

TS_HD double ts_top_a_least(double value, double mass) { return value / mass; }

// top-n-sigma: u = (highest - x) / extent is in [0, 1]; first and second add up u and u^2 as integers.
TS_HD double ts_sigma_inverse(double extent) { return extent > 0 ? 1.0 / extent : 0.0; }
TS_HD double ts_sigma_bound(double n, double highest, double extent, uint64_t first, uint64_t second, int64_t finite, double scale) {
  const double units = (double)finite * scale;
  const double mean = (double)(int64_t)first / units, square = (double)(int64_t)second / units;
  const double variance = square - mean * mean;
  return highest - n * (sqrt(variance > 0 ? variance : 0.0) * extent);
}

// typical: how far a token's surprise is from the entropy, and how much weight the closest must have together.
TS_HD float ts_typical_distance(float d, double mean_depth) { return (float)fabs(-(double)d - mean_depth); }
TS_HD uint64_t ts_typical_wanted(double mass, uint64_t total) {
  const uint64_t wanted = (uint64_t)ceil(mass * (double)(int64_t)total);
  return wanted < 1 ? 1 : wanted < total ? wanted : total;
}

// top-H: the entropy of a part of the candidates, times their weight; it grows with every token that joins.
TS_HD double ts_top_h_spent(double log_mass, uint64_t weight, uint64_t depth) {
  return log_mass * (double)(int64_t)weight + (double)(int64_t)depth;
}

// XTC: whether a token is one of the choices at the top; what a float64 probability cannot tell from 0 is none.
TS_HD bool ts_xtc_choice(float d, double least, double log_mass) {
  return (double)d - log_mass > -745.0 && (double)ts_exp(d) >= least;
}

}  // namespace
