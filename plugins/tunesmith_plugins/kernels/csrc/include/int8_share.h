// When the int8 layers share work among threads: known to the library, and to its callers, who need not ask how many threads
// there are for less.
#pragma once

#include <stdint.h>

namespace {

constexpr double kWorthWaking = 200;  // microseconds of one thread; less is done by the caller
// The same where a team is waiting for work: of rows to quantise, and of products, which may have to wait for weights from memory.
constexpr double kWorthSharingRows = 25, kWorthSharing = 10;
constexpr double kProducts = 3e5, kTileProducts = 2e6;  // in a microsecond; the second with AMX

// Microseconds that quantising so many rows takes, roughly (a row in 12 bits is two), and multiplying them.
inline double ts_quantize_cost(double quantised, double k_padded) { return quantised * k_padded / 2e3; }
inline double ts_product_cost(double columns, double quantised, double k_padded, double products) {
  return columns * k_padded * (1 / 2e4 + quantised / products);
}

// Whether a call of `rows` rows may be shared; both sizes are multiples of 64.
inline bool ts_may_share(int64_t rows, int64_t columns, int64_t k_padded) {
  const double most = 2 * (double)rows, k = (double)k_padded;
  return ts_quantize_cost(most, k) > kWorthSharingRows || ts_product_cost((double)columns, most, k, kProducts) > kWorthSharing;
}

}  // namespace
