// kth of sampling.h, and how many values it looks at, each as often as it does; and what it falls back to.
#pragma once

#include <stdint.h>

float watched_kth(const float *x, int64_t n, int64_t k, float *room, int64_t *looks);
float watched_bits(const float *x, int64_t n, int64_t k);
