// What follows the integer products, several channels at a time: the operations of int8_math.h in their order, with the
// ends that vectors do not fill left to int8_plain.h. A unit that includes this says before what Floats is, how many it
// holds (kLanes), how rows differ from bytes in [0, 255] (kFlip), the operations on Floats that are called here, and a tile
// of kTileChannels channels.
#pragma once

#include "int8_plain.h"

namespace {

constexpr int kRows = 4;

Floats exp_of(Floats x) {
  x = clamped(x, kExpLimit);  // a NaN stays one
  const Floats n = nearest(times(x, all(kLog2EFloat)));
  const Floats r = minus(minus(x, times(n, all(kLn2HighFloat))), times(n, all(kLn2LowFloat)));
  Floats p = all(kExpLeadFloat);
#define TS_STEP(c) p = plus(times(p, r), all(c));
  TS_EXP_FLOAT(TS_STEP)
#undef TS_STEP
  return times(p, power_of_two(n));
}

Floats sigmoid(Floats x) { return over(all(1.0f), plus(all(1.0f), exp_of(negated(x)))); }

Floats activate(Floats x, int32_t activation) {
  switch (activation) {
    case TS_RELU:
      return where_negative(x, all(0.0f), x);
    case TS_SILU:
      return times(x, sigmoid(x));
    case TS_GELU_TANH: {
      const Floats cubic = plus(x, times(times(times(x, x), x), all(kCubic)));
      return times(x, sigmoid(times(cubic, all(kTwiceRootTwoOverPi))));
    }
    case TS_GELU: {
      const Floats z = times(magnitude(x), all(kRootHalf));
      const Floats t = over(all(1.0f), plus(all(1.0f), times(z, all(kErfP))));
      Floats p = all(kErfLead);
#define TS_STEP(c) p = plus(times(p, t), all(c));
      TS_ERF_FLOAT(TS_STEP)
#undef TS_STEP
      const Floats tail = times(times(p, t), exp_of(negated(times(z, z))));
      const Floats half = times(x, all(0.5f));
      return where_negative(x, times(half, tail), times(half, minus(all(2.0f), tail)));
    }
    default:
      return x;
  }
}

void result(const TsTail &tail, int64_t row, int j, Floats y) {
  if (tail.bias) y = plus(y, floats(tail.bias + j));
  if (tail.activation) y = activate(y, tail.activation);
  const int64_t at = row * tail.out_stride + j;
  if (tail.multiply) y = times(y, load(tail.multiply, at, tail.dtype));
  if (tail.residual) y = plus(y, load(tail.residual, at, tail.dtype));
  store(tail.out, at, tail.dtype, y);
}

int whole(const TsTail &tail) { return tail.columns / kLanes * kLanes; }

void finish(const int32_t *c, int m, const float *row_scale, const int32_t *zero_point, const TsTail &tail) {
  int32_t zero[kRows];
  for (int i = 0; i < m; ++i) {
    zero[i] = zero_point[i] - kFlip;
    for (int j = 0; j < whole(tail); j += kLanes) {
      const Floats scale = times(all(row_scale[i]), floats(tail.scale + j));
      result(tail, i, j, times(sum8(c + i * kPanel + j, tail.sum + j, zero[i]), scale));
    }
  }
  plain_finish(c, m, row_scale, zero, tail, whole(tail));
}

void finish12(const int32_t *c, int m, const float *row_scale, int wide, const TsTail &tail) {
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < whole(tail); j += kLanes) {
      const Floats scale = times(all(row_scale[i]), floats(tail.scale + j));
      result(tail, i, j, times(sum12(c + 2 * i * kPanel + j, tail.sum + j, wide), scale));
    }
  }
  plain_finish12(c, m, row_scale, wide, rest12(tail), whole(tail));
}

void add_group12(const int32_t *c, int m, const TsTail &tail, float *y) {
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < whole(tail); j += kLanes) {
      float *at = y + i * kPanel + j;
      put(at, plus(floats(at), times(sum12(c + 2 * i * kPanel + j, tail.sum + j, 0), floats(tail.scale + j))));
    }
  }
  plain_add_group12(c, m, rest12(tail), y, whole(tail));
}

void finish_groups(const float *y, int m, const float *row_scale, const TsTail &tail) {
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < whole(tail); j += kLanes) result(tail, i, j, times(floats(y + i * kPanel + j), all(row_scale[i])));
  }
  plain_finish_groups(y, m, row_scale, tail, whole(tail));
}

void nothing(int) {}
void nothing_either() {}

// The rows of a call, whose number the tile knows while it is compiled, against all channels of a panel.
void dots(const uint8_t *a, const uint8_t *, int64_t stride, int m, const int8_t *panel, int64_t steps, int32_t *c) {
  for (int j = 0; j < kPanel; j += kTileChannels) {
    switch (m) {
      case 1:
        tile<1>(a, stride, panel + 4 * j, steps, c + j);
        break;
      case 2:
        tile<2>(a, stride, panel + 4 * j, steps, c + j);
        break;
      case 3:
        tile<3>(a, stride, panel + 4 * j, steps, c + j);
        break;
      default:
        tile<4>(a, stride, panel + 4 * j, steps, c + j);
    }
  }
}

}  // namespace
