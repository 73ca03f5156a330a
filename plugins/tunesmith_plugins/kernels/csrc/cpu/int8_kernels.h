// The inner loops of the int8 layers, one table per instruction set. Every version gives the same bits.
//
// Quantised rows lie in blocks of up to `rows` of them: a block holds, for each 64 steps of k, 64 bytes of every row
// (so a row's bytes are `stride` = 64 * rows of the block apart). Weights lie in panels of 64 output channels,
// [k/4][64][4]; k is padded to a multiple of 64 and channels to 64, both with zeros.
#pragma once

#include <stdint.h>

constexpr int64_t kPanel = 64;
constexpr int kSideBySide = 4;  // panels
constexpr int64_t kSideK = 3072;  // longer ones are read faster two at a time

// How sums become results: of the columns [0, columns) of one panel.
struct TsTail {
  const float *scale;   // (columns,)
  const int32_t *sum;   // (columns,) weights summed over k
  const float *bias;    // (columns,) or null
  void *out;            // first row
  int64_t out_stride;   // elements, of the next two as well
  const void *multiply; // first row, or null
  const void *residual; // first row, or null
  int32_t columns;
  int32_t dtype;        // TS_F32 or TS_BF16
  int32_t activation;   // ts_activation
};

// What dots_ahead() fetches while it multiplies.
struct TsAhead {
  const int8_t *weights;  // of the next panel
  int lines;              // of 64 bytes of them with each 64 steps of k
  char *out;              // where the results of this tile will lie, or null: a store that misses waits for its line first
  int64_t out_bytes;      // from row to row
  int columns_bytes;      // of a row's results
};

struct TsInt8Kernels {
  const char *name;
  int rows;       // of a block
  int tile_rows;  // rows dots() takes at once: `rows`, or two blocks
  int min_rows;   // below so many rows `below` is the better table
  const TsInt8Kernels *below;
  const TsInt8Kernels *partial;  // for sums over part of k (groups); null: this one can
  // Widens [*lowest, *highest] to hold x (TS_F32 or TS_BF16); returns 0 if a value is not finite.
  int (*row_range)(const void *x, int64_t k, int32_t dtype, float *lowest, float *highest);
  // u8 (but see flip); chunks of 64 are `stride` apart, the last one filled up with 0.
  void (*quantize)(const void *x, int64_t k, int32_t dtype, float inverse, int32_t zero_point, uint8_t *q, int64_t stride);
  // 12 bits plus 2048: the upper six in q, the lower six 64 bytes (one row of the block) behind; with flip the upper
  // less 32.
  void (*quantize12)(const void *x, int64_t k, int32_t dtype, float inverse, uint8_t *q, int64_t stride);
  // Once per thread and call, around all dots(); block_rows = rows of a block in this call.
  void (*begin)(int block_rows);
  void (*end)(void);
  // c[i * 64 + j] = sum over `steps` groups of four k; m rows. a_next: the second block of rows, if m reaches into it.
  void (*dots)(const uint8_t *a, const uint8_t *a_next, int64_t stride, int m, const int8_t *panel, int64_t steps, int32_t *c);
  // Results of m rows from u8 sums.
  void (*finish)(const int32_t *c, int m, const float *row_scale, const int32_t *zero_point, const TsTail &tail);
  // Results of m rows from pairs of sums (upper, lower); wide: their combination may not fit int32.
  void (*finish12)(const int32_t *c, int m, const float *row_scale, int wide, const TsTail &tail);
  // y[i * 64 + j] += the sum of row i's pair times tail.scale: one group of k.
  void (*add_group12)(const int32_t *c, int m, const TsTail &tail, float *y);
  // Results of m rows from the sums of add_group12.
  void (*finish_groups)(const float *y, int m, const float *row_scale, const TsTail &tail);
  // The sum of the codes of a quantised row, and of their squares.
  void (*moments)(const uint8_t *q, int64_t k, int64_t stride, int64_t *sum, int64_t *squares);
  // dots() that meanwhile fetches what is needed next; null: there is no such thing.
  void (*dots_ahead)(const uint8_t *a, const uint8_t *a_next, int64_t stride, int m, const int8_t *panel, int64_t steps, int32_t *c,
                     const TsAhead &ahead) = nullptr;
  uint8_t flip = 0;  // what quantize() stores is q with these bits turned over; finish() of the same table knows
  // dots() of one row and `count` panels that follow one another, 1 to kSideBySide of them; null: there is no such thing.
  void (*dots_side)(const uint8_t *a, int64_t stride, const int8_t *panel, int64_t panel_bytes, int count, int64_t steps, int32_t *c) = nullptr;
  int ahead_rows = 0;    // quantised rows from which dots_ahead() is worth it
  int ahead_passes = 1;  // how many times it goes over k
};

extern const TsInt8Kernels ts_int8_scalar;
#if defined(TS_HAVE_NEON)
extern const TsInt8Kernels ts_int8_neon;
#endif
#if defined(TS_HAVE_NEONDOT)
extern const TsInt8Kernels ts_int8_neondot;
#endif
#if defined(TS_HAVE_AVX2)
extern const TsInt8Kernels ts_int8_avx2;
#endif
#if defined(TS_HAVE_AVX512)
extern const TsInt8Kernels ts_int8_avx512vnni;
#endif
#if defined(TS_HAVE_AMX)
extern const TsInt8Kernels ts_int8_amx;
#endif

// How many bytes of weights before they are read they are asked for: what lies behind a panel is the next one, or ignored. Of the
// distances from 256 to 8192 those that read fastest on an Intel Xeon with AMX, and on an AMD EPYC (Zen 5).
struct TsWeightsAhead {
  int64_t tile;  // rows against one panel
  int64_t side;  // one row against several
};
const TsWeightsAhead &ts_weights_ahead();

// The chosen table, or null with a message set when TUNESMITH_ISA cannot be honoured.
const TsInt8Kernels *ts_int8_kernels();
