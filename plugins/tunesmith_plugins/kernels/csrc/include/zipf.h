// How many tokens mirostat keeps (Basu et al., 2021): the k at which a Zipf law has the surprise asked for. Shared by the CPU
// and the CUDA library; reference_ties.py says the same in torch.
#pragma once

#include <math.h>

#include "powers.h"

namespace {

// Of the likeliest tokens, ordered, the i-th and the one after it: ln((i + 1) / i).
TS_HD double ts_zipf_step(int64_t i) { return ts_log((double)(i + 1) / (double)i); }

// weighted adds up step * (difference of the logits), squares step^2 over such neighbours, in float64 and in order. Zipf's
// exponent is their ratio (equation 30).
TS_HD double ts_zipf_k(double weighted, double squares, int64_t vocab, double bits) {
  const double s = weighted / (squares < 1e-12 ? 1e-12 : squares), excess = s - 1;
  const double all = ts_log((double)vocab);
  // (1 - N^-e) / e tends to log N
  const double spread = fabs(excess) < 1e-6 ? all : (1 - ts_exp_double(-excess * all)) / excess;
  const double log_k = (bits * kLn2 - ts_log(spread < 1e-12 ? 1e-12 : spread)) / (s < 1e-3 ? 1e-3 : s);
  const double k = ts_exp_double(log_k < -1.0 ? -1.0 : log_k > 45.0 ? 45.0 : log_k);
  return rint(k < 1.0 ? 1.0 : k > (double)vocab ? (double)vocab : k);
}

}  // namespace
