// The plain version: what the others must equal.
#include "int8_plain.h"

namespace {

void nothing(int) {}
void nothing_either() {}

void dots(const uint8_t *a, const uint8_t *, int64_t stride, int m, const int8_t *panel, int64_t steps, int32_t *c) {
  for (int64_t at = 0; at < m * kPanel; ++at) c[at] = 0;
  for (int64_t step = 0; step < steps; ++step) {
    const int8_t *w = panel + step * 4 * kPanel;
    for (int i = 0; i < m; ++i) {
      const uint8_t *four = a + step / 16 * stride + i * kPanel + step % 16 * 4;
      const int32_t a0 = four[0], a1 = four[1], a2 = four[2], a3 = four[3];
      for (int j = 0; j < kPanel; ++j)
        c[i * kPanel + j] += a0 * w[4 * j] + a1 * w[4 * j + 1] + a2 * w[4 * j + 2] + a3 * w[4 * j + 3];
    }
  }
}

void finish(const int32_t *c, int m, const float *row_scale, const int32_t *zero_point, const TsTail &tail) {
  plain_finish(c, m, row_scale, zero_point, tail, 0);
}

void finish12(const int32_t *c, int m, const float *row_scale, int wide, const TsTail &tail) {
  plain_finish12(c, m, row_scale, wide, tail, 0);
}

void add_group12(const int32_t *c, int m, const TsTail &tail, float *y) { plain_add_group12(c, m, tail, y, 0); }

void finish_groups(const float *y, int m, const float *row_scale, const TsTail &tail) {
  plain_finish_groups(y, m, row_scale, tail, 0);
}

}  // namespace

extern const TsInt8Kernels ts_int8_scalar = {
    "scalar", 4, 4, 0, nullptr, nullptr, plain_row_range, plain_quantize, plain_quantize12, nothing, nothing_either,
    dots, finish, finish12, add_group12, finish_groups, plain_moments<0>};
