/* The plain C interface of the native library of tunesmith.
 *
 * Every function returns a ts_code unless it says otherwise, throws nothing, and leaves a message for
 * ts_last_error() (one per thread) when the code is not TS_OK. Pointers are borrowed for the call only.
 * All arrays are row-major and contiguous unless a stride stands beside them; strides count elements.
 */
#ifndef TUNESMITH_H
#define TUNESMITH_H

#include <stdint.h>

#if defined(_WIN32)
#define TS_API __declspec(dllexport)
#else
#define TS_API __attribute__((visibility("default")))
#endif

/* Raised whenever a struct or the meaning of a function changes; the loader refuses any other value. */
#define TS_ABI_VERSION 8

/* 255 * 128 * K must stay below 2^31, so that no int32 accumulator can overflow whatever the int8 weights are. */
#define TS_MAX_K 65792
/* 2048 * 128 * K is at most 2^31 up to here: rows in 12 bits add up in int32; above, in two int32 and one float32. */
#define TS_MAX_K_12 8192
/* TS_MIXED: a row whose 8-bit codes have a mean square below TS_MIXED_SQUARE (10 log10(12 * 512) = 37.9 dB of signal over
 * rounding), or has at most TS_MIXED_K numbers, gets 12 bits. */
#define TS_MIXED_SQUARE 512
#define TS_MIXED_K 128

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { TS_OK = 0, TS_INVALID = 1, TS_MEMORY = 2, TS_UNSUPPORTED = 3, TS_INTERNAL = 4 } ts_code;

typedef enum { TS_F32 = 0, TS_BF16 = 1, TS_F16 = 2, TS_F64 = 3, TS_I64 = 4 } ts_dtype;

typedef enum {
  TS_REPETITION_PENALTY = 0,
  TS_TEMPERATURE = 1,
  TS_TOP_K = 2,
  TS_TOP_P = 3,
  TS_MIN_P = 4,
  TS_PRESENCE_PENALTY = 5,  /* each listed token once: - value */
  TS_FREQUENCY_PENALTY = 6, /* - value * how often it is listed */
  TS_BIAS = 7,              /* + value * the sum of its amounts */
  TS_LENGTH_DECAY = 8,      /* + |x| * value, of finite x */
  TS_BAN = 9,               /* where value is 1, drops the listed tokens; so the next two */
  TS_ALLOW = 10,            /* drops all but the listed tokens */
  TS_MASK = 11,             /* drops the tokens whose bit is 0, or that have none */
  TS_EPSILON = 12,          /* drops what is less likely than value; the likeliest stays */
  TS_ETA = 13,              /* the same with min(value, sqrt(value) exp(-entropy)) */
  TS_TOP_A = 14,            /* less likely than value times the largest probability squared */
  TS_TOP_N_SIGMA = 15,      /* more than value standard deviations below the largest */
  TS_TYPICAL = 16,          /* keeps the closest to the entropy up to a mass of value, and at least second */
  TS_TOP_H = 17,            /* keeps the likeliest of second candidates up to a share of their entropy */
  TS_XTC = 18,              /* where second is 1, drops all that are as likely as value but the least likely of them */
  TS_DYNAMIC_TEMPERATURE = 19, /* / value + (second[0] - value) * (entropy / its most)^second[1] */
  TS_WATERMARK = 20,        /* + value where a hash of the last ids and the token is below second */
  TS_TOP_K_LOW = 21,        /* of what ties with the value-th largest those with the lowest ids, value in all */
  TS_TOP_P_TIES = 22,       /* TS_TOP_P, of second[0] tokens at least, and second[1] of what ties at the border, a ts_ties */
  TS_MIROSTAT = 23,         /* top-k, k from a bound of value bits and a Zipf law seen in the second likeliest */
  TS_OP_COUNT
} ts_op;

/* Of equal tokens at the border of what stays: as many as are needed, with the highest ids or the lowest, or all. */
typedef enum { TS_TIES_HIGH = 0, TS_TIES_LOW = 1, TS_TIES_ALL = 2 } ts_ties;

/* What became of a row: anything but TS_ROW_OK gives token -1 and NaN log-probabilities. */
typedef enum { TS_ROW_OK = 0, TS_ROW_NAN = 1, TS_ROW_POSINF = 2, TS_ROW_EMPTY = 3 } ts_row_status;

/* One link of the chain: values[row * stride] is the parameter of a row, as double (TS_F64) or int64 (TS_I64).
 *
 * Steps that name tokens have a list a row: ids (1 or batch, width) int64, rows ids_stride apart (0: one list for all);
 * ids outside the vocabulary, such as -1 for padding, are ignored. The penalties may leave it null: the row's history.
 * TS_MASK has int32 words there instead, bit i of word w for token 32 w + i. TS_BIAS may have amounts in the places
 * of its ids, rows amounts_stride apart; 1 each if null. TS_WATERMARK has a key and the number of ids before in place of ids.
 * TS_TYPICAL, TS_TOP_H, TS_XTC, TS_WATERMARK and TS_MIROSTAT need second[row * second_stride]; TS_DYNAMIC_TEMPERATURE and
 * TS_TOP_P_TIES that and the number after it. */
typedef struct {
  int32_t op;
  int32_t dtype;
  const void *values;
  int64_t stride;
  const void *ids;
  int64_t width, ids_stride;
  const float *amounts;
  int64_t amounts_stride;
  const double *second;
  int64_t second_stride;
} ts_step;

typedef struct {
  const void *logits; /* (batch, vocab), never written */
  int64_t batch, vocab, row_stride;
  int32_t dtype; /* TS_F32, TS_BF16 or TS_F16 */
  int32_t greedy;
  const ts_step *steps;
  int64_t step_count;
  const int64_t *seed, *stream, *position; /* (batch,), may be null when greedy or when token is null */
  int64_t draw;
  const int64_t *history; /* (batch, history_width), ids outside the vocabulary are ignored */
  const int64_t *history_lengths; /* (batch,) or null: every row uses the whole width */
  int64_t history_width;
  int64_t *token;        /* (batch,) or null */
  uint8_t *status;       /* (batch,) */
  float *logp_raw, *logp_processed, *logp_truncated; /* (batch,) each or null */
  float *out_logits;     /* (batch, vocab) or null: the row after the chain, -inf where dropped */
  void *workspace;       /* device memory, ts_cuda_sample only: ts_cuda_sample_workspace() bytes */
  void *cuda_stream;     /* ts_cuda_sample only */
  int32_t threads;       /* ts_sample only: at most so many share the rows; 0 means 1 */
  int32_t reserved;
  /* The top_count likeliest tokens, equals by id, (batch, top_count) each or null, with their
   * log-probabilities under the logits as given, after all edits, and among the tokens kept. At most vocab. */
  int64_t top_count;
  int64_t *top_raw_ids, *top_processed_ids, *top_truncated_ids;
  float *top_raw, *top_processed, *top_truncated;
} ts_sample_args;

typedef struct {
  const void *x; /* (rows, k) */
  int64_t rows, k, row_stride;
  int32_t dtype; /* TS_F32 or TS_BF16 */
  int32_t reserved;
  uint8_t *q;          /* (rows, k) */
  float *scale;        /* (rows,) */
  int32_t *zero_point; /* (rows,) */
  void *cuda_stream;
} ts_quantize_args;

typedef enum { TS_NO_ACTIVATION = 0, TS_RELU = 1, TS_SILU = 2, TS_GELU = 3, TS_GELU_TANH = 4 } ts_activation;

/* How rows are quantised: u8 by their own range, u8 by static_scale and static_zero_point, 12 bits by their own, or 12 bits
 * where u8 would lose too much of the row and u8 elsewhere. */
typedef enum { TS_DYNAMIC = 0, TS_STATIC = 1, TS_WEIGHT_ONLY = 2, TS_MIXED = 3 } ts_int8_mode;

/* What is done to a row before it is quantised: nothing; x / rms(x) * weight; or that of LayerNorm, with bias. */
typedef enum { TS_NO_NORM = 0, TS_RMS_NORM = 1, TS_LAYER_NORM = 2 } ts_norm;

/* One layer on the rows of ts_int8_args: out = activation(x w^T + bias) * multiply + residual. */
typedef struct {
  const int8_t *weight; /* packed: (ceil(n/64), ceil(k/64)*16, 64, 4), zeros where n and k end */
  const float *scale;   /* (n,), or (groups, n) */
  const int32_t *sum;   /* of the same shape: the integers summed over k, or over each group */
  const float *bias;    /* (n,) or null */
  void *out;            /* (rows, n) of the type of x */
  int64_t out_stride;
  int64_t n;
  const void *multiply; /* (rows, n) of the type and stride of out, or null; may be the out of a layer before this one */
  const void *residual; /* the same, added; may be out itself */
  int32_t activation;
  int32_t reserved;
} ts_int8_layer;

typedef struct {
  const void *x; /* (rows, k) */
  int64_t rows, k, row_stride;
  int32_t dtype;      /* TS_F32 or TS_BF16, of x and of the results */
  int32_t mode;       /* ts_int8_mode */
  int64_t group_size; /* 0: one scale a channel; else 32 or a multiple of 64, TS_WEIGHT_ONLY only */
  const ts_int8_layer *layers;
  int64_t layer_count;
  float static_scale;
  int32_t static_zero_point;
  int32_t threads; /* at most so many; small work stays on one */
  int32_t norm;    /* ts_norm */
  const float *norm_weight, *norm_bias; /* (k,); bias for TS_LAYER_NORM */
  double norm_epsilon;
  void *norm_out; /* (rows, k) contiguous, of the type of x: the rows after the norm; or null */
} ts_int8_args;

TS_API int32_t ts_abi_version(void);          /* returns TS_ABI_VERSION of the library, not a ts_code */
TS_API const char *ts_last_error(void);       /* the calling thread's last message */
TS_API const char *ts_isa_available(void);    /* comma separated, slowest first */
TS_API const char *ts_isa_current(void);      /* chosen once: TUNESMITH_ISA if set, else the best available; null and a message when TUNESMITH_ISA cannot be honoured */
TS_API int32_t ts_isa_set(const char *name);
TS_API int32_t ts_sample(const ts_sample_args *args);
/* The same with its arguments in a row, for callers to whom structs are slow: steps, step_count, greedy, draw, threads,
 * logits, batch, vocab, row_stride, dtype, seed, stream, position, history, history_lengths, history_width, token,
 * status, logp_raw, logp_processed, logp_truncated. */
TS_API int32_t ts_sample_words(const int64_t *words, int64_t count);
/* Where the code is that a usual call of ts_sample runs: TS_WARM_RANGES times an address and a number of bytes, for callers
 * that ask for it before they need it: TS_WARM_COMMON for all, then TS_WARM_TYPED for every type of logits, 0 to 2. Depends
 * on the instruction set chosen. */
#define TS_WARM_COMMON 5
#define TS_WARM_TYPED 2
#define TS_WARM_RANGES (TS_WARM_COMMON + 3 * TS_WARM_TYPED)
TS_API int32_t ts_warm_code(int64_t *words);
/* The same of a call of ts_int8_linears with one row. */
#define TS_INT8_WARM_RANGES 6
TS_API int32_t ts_int8_warm_code(int64_t *words);
/* Calls body(context) on up to `threads` threads at once, the caller's among them, and returns when all are done; flags are 0.
 * GOMP_parallel of an OpenMP library is one. */
typedef void (*ts_team)(void (*body)(void *), void *context, unsigned threads, unsigned flags);
/* Has work shared among that team's threads in place of the library's own, in this process and not in forked ones; null: its
 * own again. The threads of an OpenMP that is in use wait for work without sleeping for some ms after every piece: threads
 * of our own would have to share the cores with them. */
TS_API void ts_use_team(ts_team team);
TS_API int32_t ts_quantize_rows(const ts_quantize_args *args);
/* Rows are quantised once for all layers. Weights are packed by the caller, or by ts_int8_pack. */
TS_API int32_t ts_int8_linears(const ts_int8_args *args);
/* The same with its arguments in a row, for callers to whom structs are slow: x, rows, k, row_stride, dtype, mode,
 * group_size, static_scale (the bits of a double), static_zero_point, threads, norm, norm_weight, norm_bias,
 * norm_epsilon (a double too), norm_out, and for each layer weight, scale, sum, bias, out, out_stride, n, activation,
 * multiply, residual. */
TS_API int32_t ts_int8_linears_words(const int64_t *words, int64_t count);
/* Rotary position embedding in place (Su et al. 2021, halves rotated): words are q, k, rows, heads of q, heads of k,
 * row_stride of q, of k, head_dim, cos, sin, rows of cos and sin (row r takes the one r % rows); all float32. */
TS_API int32_t ts_rotary_words(const int64_t *words, int64_t count);
/* Attention of few queries over keys and values in 8 bits. Words: q, out (both (batch, heads, queries, size) float32), batch,
 * heads, queries, kv_heads, time, size, k ((batch, kv_heads, time, size) int8), its scales ((batch, kv_heads, time) float32),
 * v, its scales, mask (float32, added to the scores, its last axis contiguous) or null, the mask's strides of batch, head
 * and query, scale (the bits of a double), threads, room: a head's tokens begin so many behind those of the head before, in k, v
 * and their scales (time, or more). */
TS_API int32_t ts_int8_attention_words(const int64_t *words, int64_t count);
/* A step of attention over a float32 cache. Words: q, out ((batch, queries, heads, size), contiguous), batch, heads, queries,
 * kv_heads, time, size; the strides of row, head and token of q; new keys and new values (or null, both) and the strides from one
 * token to the next of both; the cache's keys and values ((batch, kv_heads, time, size), a head's tokens behind one another), the
 * strides of row and head of the keys and of the values; cos, sin (or null) and how many rows they have (token r takes the one
 * r % rows); mask, its kind (0: none, 1: float32 added to the scores, 2: bytes that are 0 where nothing is seen), its strides of
 * row, head and query (its last axis is contiguous); scale (the bits of a double), threads. New keys, turned by cos and sin as the
 * queries are, and new values are written to the last places of the cache first. */
TS_API int32_t ts_float_attention_words(const int64_t *words, int64_t count);
/* Rounds new keys and values to 8 bits, into the store of a cache. Words: batch, heads, new tokens, size, dtype (TS_F32, TS_BF16 or
 * TS_F16), room (tokens a head of the store has place for), first (the place of the first new token), and for keys and for
 * values: x, its strides of batch, head and token (its last axis is contiguous), the store ((batch, heads, room, size) int8) and
 * its scales ((batch, heads, room) float32). */
TS_API int32_t ts_int8_append_words(const int64_t *words, int64_t count);
TS_API int32_t ts_int8_pack(const int8_t *weight, int64_t n, int64_t k, int8_t *packed);
/* The arithmetic under every weight, open to tests: e[i] = exp(z[i] - max), *total = their integer weights' sum. */
TS_API int32_t ts_exp_row(const float *z, int64_t n, float max, int64_t vocab, float *e, uint64_t *total);

/* The noise of rows: out[i] in [0, 1), 53 bits, for seed[i], stream[i], position[i] and draw. */
TS_API int32_t ts_uniform(const int64_t *seed, const int64_t *stream, const int64_t *position, int64_t draw, double *out,
                          int64_t rows);

/* libtunesmith_cuda: the same arguments with device pointers; work is queued on cuda_stream, nothing waits.
 * The values of the steps are device pointers too, so their ranges are not checked here: the caller checks. */
TS_API int32_t ts_cuda_abi_version(void);
TS_API const char *ts_cuda_last_error(void);
TS_API int64_t ts_cuda_sample_workspace(int64_t batch, int64_t vocab, int64_t history_width); /* bytes */
TS_API int32_t ts_cuda_sample(const ts_sample_args *args);
TS_API int32_t ts_cuda_quantize_rows(const ts_quantize_args *args);
/* As ts_int8_linears. Weights are (n, k), both padded with zeros to multiples of 16, at an address that 16 divides;
 * n and k of the call are the true ones. workspace: ts_cuda_int8_workspace() bytes, aligned to 256. */
TS_API int32_t ts_cuda_int8_linears(const ts_int8_args *args, void *workspace, int64_t workspace_bytes, void *cuda_stream);
/* Words: cuda_stream, workspace, workspace_bytes and those of ts_int8_linears_words. */
TS_API int32_t ts_cuda_int8_linears_words(const int64_t *words, int64_t count);
/* Words: cuda_stream and those of ts_rotary_words. */
TS_API int32_t ts_cuda_rotary_words(const int64_t *words, int64_t count);
/* Words: cuda_stream, workspace (aligned to 8 bytes), workspace_bytes (batch * heads * queries times 8 * size + 4 * time +
 * 8 * ceil(time / 64) + 24 at least) and those of ts_int8_attention_words, of which threads means nothing here. */
TS_API int32_t ts_cuda_int8_attention_words(const int64_t *words, int64_t count);
/* Words: cuda_stream and those of ts_int8_append_words. */
TS_API int32_t ts_cuda_int8_append_words(const int64_t *words, int64_t count);
/* Bytes for a call of the int8 layers; widest: the largest n of its layers. */
TS_API int64_t ts_cuda_int8_workspace(int64_t rows, int64_t k, int32_t mode, int64_t group_size, int64_t widest);
/* Use cublasLt where it is found (1, as at the start), or never (0); anything else changes nothing. Returns whether it is
 * in use. Without it the library's own kernel takes every number of rows, with the same bits. */
TS_API int32_t ts_cuda_cublaslt(int32_t use);

#ifdef __cplusplus
}
#endif
#endif
