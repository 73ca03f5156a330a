// The selection of sampling_select.h over 16 lanes as an array, once more, with its looks counted.
#define ts_sampling_scalar ts_sampling_watched
#include "../cpu/sampling_scalar.cpp"
#undef ts_sampling_scalar

#include "watched_selection.h"

float watched_kth(const float *x, int64_t n, int64_t k, float *room, int64_t *looks) {
  *looks = 0;
  return kth_seen(x, n, k, room, [looks](int64_t here) { *looks += here; });
}

float watched_bits(const float *x, int64_t n, int64_t k) {
  return kth_by_bits(x, n, k, [](int64_t) {});
}
