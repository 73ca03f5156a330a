// Which tokens the watermark of Kirchenbauer et al. (2023) makes likelier. Shared by the CPU, whose loop over a vocabulary
// is in watermark.h, and the CUDA library; reference_watermark.py says the same in torch.
#pragma once

#include <math.h>

#include "numeric.h"

namespace {

// The ids before are folded into one number, each by a draw of its own.
TS_HD uint64_t ts_watermark_stream(int64_t key, const int64_t *before, int64_t context) {
  uint64_t stream = 0;
  for (int64_t place = 0; place < context; ++place)
    stream = ts_uniform_bits(key, (int64_t)(stream ^ (uint64_t)before[place]), place, 1);
  return stream;
}

// A number of 53 bits over 2^53 is below gamma if it is below this.
TS_HD uint64_t ts_green_bound(double gamma) { return (uint64_t)ceil(gamma * 0x1p53); }

TS_HD bool ts_is_green(int64_t key, uint64_t stream, uint64_t bound, int64_t token) {
  return ts_uniform_bits(key, (int64_t)stream, token, 0) >> 11 < bound;
}

}  // namespace
