// The loops over a row of logits that have one version per instruction set. What they compute exactly (everything but
// below, rough, the mass of scan_rough and what is near in shallow) has the same bits in every version.
#pragma once

#include <stdint.h>

constexpr int kLanes = 16;          // values handled together
constexpr int64_t kBlock = 256;     // tokens of a block: lane j of a block is the tokens 16 i + j, i < 16
constexpr double kFlat = -2;         // for the mass of a row that is not estimated
constexpr int64_t kBlockGroups = kBlock / kLanes;

// A row as it is read: element i stands for f(x[i]), f = division by each of the divisors in turn. Tokens in marks
// have a value of their own elsewhere and are passed over.
struct TsRow {
  const void *x;
  int64_t n;
  const uint16_t *marks;    // a bit a token, or null
  const uint8_t *flagged;   // a byte a block: whether it has a marked token
  const float *divisors;
  int32_t divisor_count;
  int32_t dtype;
  bool in_line = false;        // a first read does not go through several parts side by side (ts_reads_in_line)
  const void *next = nullptr;  // the row that is read after this one, or null
};

constexpr int kFraction = 29;
// Results of TsSampling::shallow. The tokens with from <= x < below are listed in ascending order of ids.
struct TsShallow {
  uint64_t *blocks;  // the weights' sum of the tokens with x >= below of every block
  float *z;          // f(x) of the listed (room for n + 16) ...
  uint64_t *w;       // ... and their weights
  int64_t *ends;     // how many of them come before block b + 1
  uint64_t above;    // the weights' sum of all tokens with x >= below ...
  uint64_t near;     // ... and that of all others, the listed ones too, ...
  uint64_t error;    // ... which is so far off at most
};

// What stands for the weight of a token in estimates: 2^((f(x) - offset) slope), nearly, where f(x) is x, or x / divisor to the
// last bit unless that is 0; 0 of x up to `lowest`.
struct TsPowers {
  float slope, offset, divisor, lowest;
};

// What TsFlatLoops::pass finds out about a row: sums of powers.
struct TsFlat {
  double *sums;    // of every block, and behind it of the block's tokens with x < below
  int32_t *spans;  // where in x those of every block begin and end
  float *x;        // the tokens with from <= x < below, block by block in no order (room for n + 32)
  int64_t listed;  // how many these are
  double whole, rest;  // the sums of all blocks
  float most;      // no power is larger
  double enough;   // beyond this sum of all blocks the rest need not be read
};

// Of values x with the weights u: the weights' sum of those below a pivot, their number, the largest of them and the
// smallest of all others; infinite where there is none.
struct TsUnder {
  double sum;
  int64_t count;
  float prior, next;
};

// How far off at most, as shares: exp (ts_exp) from -24 on, a power that is not rounded (a table's entry, a square and its
// rounding 2.35e-7, and 0.42e-7 for the remainder's), and a sum of TsFlat: its products are added up four times, the first time
// to 0, then twice in pairs, and as neighbours once.
constexpr double kHalf = 0x1p-24, kExpError = 1.82e-7, kPowerError = 2.77e-7, kSumError = 7.0001 * kHalf;

// Estimates from which a token of a flat row can mostly be drawn (ChainRow::flat_draw).
struct TsFlatLoops {
  // Whether quotients by this divisor are exact in the few steps that TsPowers are made in.
  bool (*divides)(float divisor);
  // Writes the finite x of one whole block in every `step`, and *largest of them; returns how many. There is room for 16 more.
  int64_t (*some)(const TsRow *row, int64_t step, float *x, float *largest);
  // One pass over a row without marks; false if there is a NaN, +inf, something too large for sums to be finite, or more than
  // enough.
  bool (*pass)(const TsRow *row, const TsPowers *powers, float from, float below, TsFlat *out);
  // u[i] = the power of x[i], or 0 of +inf; returns the sum. n is a multiple of 16.
  double (*powers)(const float *x, int64_t n, const TsPowers *powers, float *u);
  // n is a multiple of 16, with values of +inf at the end.
  TsUnder (*under)(const float *x, const float *u, int64_t n, float pivot);
  // Copies those with from <= x < below, and their weights; returns how many. n is a multiple of 16, and there is room for
  // 16 more.
  int64_t (*pick)(const float *x, const float *u, int64_t n, float from, float below, float *some_x, float *some_u);
  // sums[2 b] becomes the sum over the tokens of block b with x >= below, and the listed with x >= bound, whose weights are
  // u (room for 32 more); spans[2 b] how many of these are less than beyond.
  void (*kept)(TsFlat *flat, const float *u, int64_t blocks, float bound, float beyond);
};

// A loop over a row of logits, a version for every type of them (ts_dtype, 0 to 2).
template <typename Loop>
using TsByType = Loop *[3];

struct TsSampling {
  // Writes the largest x of every lane of every block, ceil(n / 256) * 16 of them; returns the largest of all. Sets
  // *has_nan if any token, marked or not, is a NaN (the maxima then mean nothing).
  TsByType<float(const TsRow *row, float *lanes, uint8_t *has_nan)> scan;
  // The same of a row without marks and with one divisor at most, and *mass becomes the sum of exp(f(x) - largest f) over
  // the row, nearly; below 0 where there is none, kFlat if the row looks too flat for an estimate to be of use; with
  // `judge` that is then all that it does, and what it returns is the largest of the first tokens. Null where that is not
  // quicker than scan and rough.
  TsByType<float(const TsRow *row, float *lanes, uint8_t *has_nan, double *mass, bool judge)> scan_rough;
  // Writes id and x of every token with from <= x < below, in ascending order of ids; returns how many. There is room for
  // two more.
  TsByType<int64_t(const TsRow *row, const float *lanes, float from, float below, int32_t *ids, float *x)> collect;
  // Returns the weights' sum of the tokens with x >= from; blocks[b] gets the sum of block b unless it is null.
  uint64_t (*mass)(const TsRow *row, float max, int bits, float from, uint64_t *blocks);
  // The same of those with x >= below in one pass with what else top-p asks of a flat row: *total gets the weights' sum of
  // all tokens, between (room for n + 16) x of those with from <= x < below in ascending order of ids, ends[b] how many of
  // them come before block b + 1.
  uint64_t (*split)(const TsRow *row, float max, int bits, float from, float below, uint64_t *blocks, float *between,
                    int64_t *ends, uint64_t *total);
  // What split() is for, where exp(f(x) - max) >= 2^(23 - kFraction) of all tokens with x >= from: false if these are not
  // its kind of divisors, or of sums. Null where that is not quicker.
  bool (*shallow)(const TsRow *row, float max, int bits, float from, float below, TsShallow *out);
  // For flat rows that are only drawn from. Null where that is not quicker.
  const TsFlatLoops *flat;
  // The sum of exp(f(x) - max) of the tokens with x < below, nearly, at a third of the cost, for a divisor or none. Null
  // where there is no quicker way than mass.
  double (*rough)(const TsRow *row, float max, float below);
  // Writes x of one group of 16 in every `stride` blocks, without marked tokens and, unless lanes is null,
  // the largest ones of a lane.
  int64_t (*sample)(const TsRow *row, const float *lanes, int64_t stride, float *x);
  // The k-th largest of x, 1 <= k <= n, none of them a NaN. There is room for 2 n + 32 values.
  float (*kth)(const float *x, int64_t n, int64_t k, float *room);
  // The same of 32 values at most, without room.
  float (*kth_of_few)(const float *x, int64_t n, int64_t k);
  // A value that at least k of the `count` maxima of scan reach, 1 <= k <= count: not much less than the k-th largest. There
  // is room for 3 count + 32 values.
  float (*kth_of_lanes)(const float *lanes, int64_t count, int64_t k, float *room);
  // w[i] = weight of z[i]; returns their sum.
  uint64_t (*weights)(const float *z, int64_t n, float max, int bits, uint64_t *w);
  // The sum of those w[i] where z[i] is below the threshold, and their number.
  uint64_t (*weights_below)(const float *z, const uint64_t *w, int64_t n, float threshold, int64_t *count);
  // e[i] = exp((z[i] - max) * slope)
  void (*exps)(const float *z, int64_t n, float max, float slope, float *e);
  void (*divide)(float *z, int64_t n, float divisor);
  // Which tokens of a vocabulary of n are green (watermark.h), a bit a token, 16 tokens a number; those beyond n are not.
  void (*green)(int64_t key, uint64_t stream, uint64_t bound, int64_t n, uint16_t *bits);
  // The sum of those e[i] that are below the threshold, and their number: an estimate, rounded as the version likes.
  float (*below)(const float *e, int64_t n, float threshold, int64_t *count);
};

extern const TsSampling ts_sampling_scalar;
#if defined(TS_HAVE_AVX2)
extern const TsSampling ts_sampling_avx2;
#endif
#if defined(TS_HAVE_AVX512)
extern const TsSampling ts_sampling_avx512;
#endif
#if defined(TS_HAVE_NEON)
extern const TsSampling ts_sampling_neon;
#endif

// Whether this processor reads memory fastest from one place on, and asked for further ahead: AMD's does.
bool ts_reads_in_line();

// The chosen version, or null with a message set when TUNESMITH_ISA cannot be honoured.
const TsSampling *ts_sampling();
