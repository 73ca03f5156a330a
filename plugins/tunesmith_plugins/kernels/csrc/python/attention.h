// A step of attention over a float32 cache in one step of Python. Included by call.cpp, after linears.h.
#pragma once

#include <math.h>

#include "float_attention.h"

namespace {

constexpr int kAttentionWords = 31;
constexpr uint8_t kCodeBool = 6;
constexpr double kMostResult = 1e9;             // numbers; more is left to torch
constexpr double kBriefBytes = 4e5;             // of the cache, some 10 us: for less the interpreter is not let go

// A tensor of the CPU as it lies; shape and strides hold as long as the tensor does.
struct Strided {
  int64_t data;
  const int64_t *shape, *stride;
  int32_t ndim;
  uint8_t code, bits;
};

Found strided_of(PyObject *tensor, Strided *found) {
  PyObject *type = (PyObject *)Py_TYPE(tensor);
  if (type != held[kTensor] && type != held[kParameter]) return kUnusual;
  Borrowed borrowed;
  if (exchange->borrow(tensor, &borrowed)) {
    PyErr_Clear();
    return kUnusual;
  }
  if (borrowed.device_type != kHostMemory || borrowed.lanes != 1) return kUnusual;
  *found = {(int64_t)(intptr_t)borrowed.data + (int64_t)borrowed.byte_offset, borrowed.shape, borrowed.strides, borrowed.ndim, borrowed.code,
            borrowed.bits};
  return borrowed.code == kCodeFloat ? plain_sign(tensor) : kFine;
}

bool is_shape(const int64_t *shape, int64_t first, int64_t second, int64_t third) {
  return shape[0] == first && shape[1] == second && shape[2] == third;
}

// A cache (batch, kv_heads, time, size) whose heads' tokens lie behind one another; its shape must be `shape` unless that is null.
Found cache_of(PyObject *tensor, const int64_t *shape, Strided *cache, int64_t *words) {
  const Found found = strided_of(tensor, cache);
  if (found != kFine) return found;
  if (cache->ndim != 4 || cache->code != kCodeFloat || cache->bits != 32) return kUnusual;
  if (shape && memcmp(shape, cache->shape, 4 * sizeof *shape)) return kUnusual;
  const int64_t time = cache->shape[2], size = cache->shape[3];
  if ((size > 1 && cache->stride[3] != 1) || (time > 1 && cache->stride[2] != size)) return kUnusual;
  words[0] = cache->stride[0], words[1] = cache->stride[1];
  return kFine;
}

// New keys or values (batch, new, width), and the stride from one token to the next.
Found new_of(PyObject *tensor, int64_t batch, int64_t queries, int64_t width, int64_t *pointer, int64_t *step) {
  Strided states;
  const Found found = strided_of(tensor, &states);
  if (found != kFine) return found;
  if (states.ndim != 3 || states.code != kCodeFloat || states.bits != 32 || !is_shape(states.shape, batch, queries, width)) return kUnusual;
  const int64_t row = states.stride[0], token = states.stride[1];
  if ((width > 1 && states.stride[2] != 1) || (queries > 1 && batch > 1 && row != queries * token)) return kUnusual;
  *pointer = states.data, *step = queries > 1 ? token : row;
  return kFine;
}

// cos or sin, (1 or batch, new, size): its number of tables.
Found tables_of(PyObject *tensor, int64_t batch, int64_t queries, int64_t size, int64_t *pointer, int64_t *tables) {
  Dense table;
  const Found found = dense_of(tensor, &table);
  if (found != kFine) return found;
  const int64_t rows = table.ndim == 3 ? table.shape[0] : 0;
  if (!table.is(kCodeFloat, 32) || (rows != 1 && rows != batch) || !is_shape(table.shape, rows, queries, size)) return kUnusual;
  *pointer = table.data, *tables = rows * queries;
  return kFine;
}

// A mask that goes with (batch, heads, queries, time), where it has 1 in place of a size.
Found mask_of(PyObject *tensor, const int64_t *sizes, int64_t *words) {
  Strided mask;
  const Found found = strided_of(tensor, &mask);
  if (found != kFine) return found;
  const bool seen = mask.code == kCodeBool && mask.bits == 8;
  if (mask.ndim != 4 || !(seen || (mask.code == kCodeFloat && mask.bits == 32)) || mask.shape[3] != sizes[3]) return kUnusual;
  if (sizes[3] > 1 && mask.stride[3] != 1) return kUnusual;
  words[24] = mask.data, words[25] = seen ? kSeenMask : kAddedMask;
  for (int i = 0; i < 3; ++i) {
    if (mask.shape[i] != sizes[i] && mask.shape[i] != 1) return kUnusual;
    words[26 + i] = mask.shape[i] == 1 ? 0 : mask.stride[i];
  }
  return kFine;
}

// Queries (batch, new, heads * size) if `flat`, else (batch, heads, queries, size), into the words of a call.
Found queries_of(PyObject *tensor, bool flat, int64_t size, int64_t *words) {
  Strided q;
  const Found found = strided_of(tensor, &q);
  if (found != kFine) return found;
  if (q.ndim != (flat ? 3 : 4) || q.code != kCodeFloat || q.bits != 32) return kUnusual;
  const int64_t last = q.shape[q.ndim - 1];
  if ((last > 1 && q.stride[q.ndim - 1] != 1) || last % size || (!flat && last != size)) return kUnusual;
  words[0] = q.data, words[2] = q.shape[0];
  if (flat) {
    words[3] = last / size, words[4] = q.shape[1];
    words[8] = q.stride[0], words[9] = size, words[10] = q.stride[1];
  } else {
    words[3] = q.shape[1], words[4] = q.shape[2];
    words[8] = q.stride[0], words[9] = q.stride[1], words[10] = q.stride[2];
  }
  return words[2] > 0 && words[3] > 0 && words[4] > 0 ? kFine : kUnusual;
}

// attend(q, k, v, keys, values, mask, scale, rotary): what cached_attention_ does where everything is as usual, (batch, new, heads *
// size); with None for k and v what float_attention does, (batch, queries, heads, size). None, and nothing done, elsewhere.
PyObject *attend(PyObject *, PyObject *const *args, Py_ssize_t given) {
  if (given != 8) {
    PyErr_SetString(PyExc_TypeError, "attend() takes 8 arguments");
    return nullptr;
  }
  if (!exchange || !attention_words) Py_RETURN_NONE;
  int64_t words[kAttentionWords] = {};
  const bool flat = args[1] != Py_None;
  if (flat != (args[2] != Py_None)) Py_RETURN_NONE;
  Strided keys, values;
  Found found = cache_of(args[3], nullptr, &keys, words + 17);
  if (found == kFine) found = cache_of(args[4], keys.shape, &values, words + 19);
  if (found == kFine) found = unseen();
  if (found == kFine && (keys.shape[1] < 1 || keys.shape[2] < 1 || keys.shape[3] < 1)) found = kUnusual;
  if (found == kFine) found = queries_of(args[0], flat, keys.shape[3], words);
  if (found == kError) return nullptr;
  if (found == kUnusual) Py_RETURN_NONE;
  const int64_t batch = words[2], heads = words[3], queries = words[4], kv_heads = keys.shape[1], time = keys.shape[2], size = keys.shape[3];
  if (keys.shape[0] != batch || heads % kv_heads) Py_RETURN_NONE;
  const int64_t sizes[] = {batch, heads, queries, time};
  // expanded queries may be more than memory holds
  if ((double)batch * (double)heads * (double)queries * (double)size > kMostResult) Py_RETURN_NONE;
  words[5] = kv_heads, words[6] = time, words[7] = size, words[15] = keys.data, words[16] = values.data;
  for (int i = 0; flat && i < 2 && found == kFine; ++i)
    found = new_of(args[1 + i], batch, queries, kv_heads * size, words + 11 + i, words + 13 + i);
  // rows of a cache that share their memory cannot be written to
  if (flat && (queries > time || (batch > 1 && !(words[17] && words[19])))) found = kUnusual;
  if (found == kFine && args[7] != Py_None) {
    int64_t sines = 0;
    if (!PyTuple_Check(args[7]) || PyTuple_Size(args[7]) != 2 || size % 2) Py_RETURN_NONE;
    found = tables_of(PyTuple_GetItem(args[7], 0), batch, queries, size, words + 21, words + 23);
    if (found == kFine) found = tables_of(PyTuple_GetItem(args[7], 1), batch, queries, size, words + 22, &sines);
    if (found == kFine && sines != words[23]) found = kUnusual;
  }
  if (found == kFine && args[5] != Py_None) found = mask_of(args[5], sizes, words);
  if (found == kFine && args[6] == Py_None) {
    const double scale = pow((double)size, -0.5);
    memcpy(words + 29, &scale, sizeof scale);
  } else if (found == kFine) {
    found = !PyFloat_Check(args[6]) ? kUnusual : word_of(args[6], words + 29) ? kFine : kError;
  }
  if (found == kFine && ts_attention_may_share(batch * kv_heads, queries, time, size) &&
      !number_of(PyObject_CallNoArgs(held[kThreads]), words + 30))
    found = kError;
  if (found == kError) return nullptr;
  if (found == kUnusual) Py_RETURN_NONE;
  const int64_t shape[] = {batch, queries, flat ? heads * size : heads, size};
  const Dense like = {0, batch * queries * heads * size, shape[flat ? 2 : 3], shape, flat ? 3 : 4, kCodeFloat, 32};
  PyObject *result = result_like(like, like.last, words + 1);
  const bool brief = ts_attention_bytes(batch * kv_heads, heads / kv_heads * queries, time, size) < kBriefBytes;
  if (result && !run(attention_words, words, kAttentionWords, brief)) Py_CLEAR(result);
  return result;
}

}  // namespace
