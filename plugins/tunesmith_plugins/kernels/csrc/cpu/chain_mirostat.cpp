// Mirostat's first algorithm (Basu et al., 2021): top-k with the k at which a Zipf law has the surprise asked for.
#include <float.h>
#include <math.h>

#include <algorithm>

#include "chain_row.h"
#include "zipf.h"

namespace {

// z: the likeliest, largest first.
double zipf_k(const float *z, int64_t count, int64_t vocab, double bits) {
  double weighted = 0, squares = 0;
  for (int64_t i = 1; i < count; ++i) {
    const double t = ts_zipf_step(i);
    weighted = weighted + t * ((double)z[i - 1] - (double)z[i]);
    squares = squares + t * t;
  }
  return ts_zipf_k(weighted, squares, vocab, bits);
}

}  // namespace

void ChainRow::mirostat(const ts_step &step, double bits) {
  if (form_ == kAbove) list_whole();
  const double second = step.second[row_ * step.second_stride];
  const int64_t candidates = second < (double)vocab_ ? (int64_t)second : vocab_;
  const Form before = form_;
  if (before == kDense) {
    const float x = kth_of_lanes(candidates);
    list_from(x == -HUGE_VALF ? -FLT_MAX : value_of(x, dense_divisors_), HUGE_VALF);
  }
  float *z = e_.at_least(vocab_);
  const int64_t finite = std::copy_if(z_.get(), z_.get() + n_, z, [](float v) { return v > -HUGE_VALF; }) - z;
  const int64_t count = std::min(candidates, finite);
  std::partial_sort(z, z + count, z + finite, [](float a, float b) { return a > b; });
  if (before == kDense) n_ = 0;
  const double k = zipf_k(z, count, vocab_, bits);
  if (k >= (double)vocab_) return;
  top_k(k);
  // Of what ties with the k-th the lowest ids stay, but all of the likeliest.
  if ((double)n_ <= k || lowest() == max_) return;
  rule_ = TS_TIES_LOW;
  keep_beyond(lowest(), (uint64_t)(n_ - (int64_t)k));
}
