// int8 layers in one step of Python: tensors are read, and results made, through DLPack's table. Included by call.cpp.
#pragma once

#include "int8_share.h"

namespace {

constexpr int32_t kMostDims = 8;
constexpr int kMostLayers = 40;           // as in int8_call.h
constexpr int kParts = 6;                 // of a PackedWeight
constexpr int64_t kFirstWords = 15, kLayerWords = 10, kWeightOnly = 2;
constexpr int64_t kBriefProducts = 1 << 19;   // some 10 us: for less the interpreter is not let go

int64_t padded(int64_t size) { return (size + 63) / 64 * 64; }

// A dense tensor of the CPU.
struct Dense {
  int64_t data, size, last;
  const int64_t *shape;
  int32_t ndim;
  uint8_t code, bits;
  bool is(uint8_t kind, uint8_t width) const { return code == kind && bits == width; }
};

// Parameters are tensors too; the caller sees to gradients.
Found dense_of(PyObject *tensor, Dense *dense) {
  PyObject *type = (PyObject *)Py_TYPE(tensor);
  if (type != held[kTensor] && type != held[kParameter]) return kUnusual;
  Borrowed borrowed;
  if (exchange->borrow(tensor, &borrowed)) {
    PyErr_Clear();
    return kUnusual;
  }
  if (borrowed.device_type != kHostMemory || borrowed.lanes != 1 || borrowed.ndim < 1 || borrowed.ndim > kMostDims) return kUnusual;
  int64_t size = 1;
  for (int32_t d = borrowed.ndim - 1; d >= 0; --d) {
    if (borrowed.shape[d] != 1 && borrowed.strides[d] != size) return kUnusual;
    size *= borrowed.shape[d];
  }
  if (!size) return kUnusual;
  if (borrowed.code == kCodeFloat || borrowed.code == kCodeBfloat) {
    const Found sign = plain_sign(tensor);
    if (sign != kFine) return sign;
  }
  *dense = {(int64_t)(intptr_t)borrowed.data + (int64_t)borrowed.byte_offset, size, borrowed.shape[borrowed.ndim - 1],
            borrowed.shape, borrowed.ndim, borrowed.code, borrowed.bits};
  return kFine;
}

Found gradients() {
  PyObject *recorded = PyObject_CallNoArgs(held[kGradients]);
  if (!recorded) return kError;
  Py_DECREF(recorded);
  return recorded == Py_False ? kFine : kUnusual;
}

// Memory of small results that were let go is kept for the next ones: after other work malloc and free take a microsecond.
constexpr int kKeptSizes = 6, kKeptEach = 4;      // of 1 KB, 2 KB ... 32 KB
std::atomic<void *> kept[kKeptSizes][kKeptEach];  // null: nothing there

// Which size has room for so many bytes; kKeptSizes: none.
int kept_size(size_t bytes) {
  int size = 0;
  while (size < kKeptSizes && bytes > (size_t)1024 << size) ++size;
  return size;
}

void *take(size_t bytes, int size) {
  if (size == kKeptSizes) return malloc(bytes);
  for (std::atomic<void *> &place : kept[size])
    if (place.load(std::memory_order_relaxed))
      if (void *memory = place.exchange(nullptr, std::memory_order_acquire)) return memory;
  return malloc((size_t)1024 << size);
}

// Results go where their last tensor does, on any thread.
void give(void *memory, int size) {
  if (size < kKeptSizes)
    for (std::atomic<void *> &place : kept[size]) {
      void *nothing = nullptr;
      if (place.compare_exchange_strong(nothing, memory, std::memory_order_release, std::memory_order_relaxed)) return;
    }
  free(memory);
}

// A result of the shape of x but for its last dimension, and the memory behind it.
struct Result {
  Managed managed;
  int size;  // as of kept_size
  int64_t shape[kMostDims], stride[kMostDims];
};

void release_result(Managed *managed) {
  Result *result = (Result *)managed->context;
  give(result, result->size);
}

PyObject *result_like(const Dense &x, int64_t last, int64_t *data) {
  constexpr size_t kAlign = 64;
  const size_t bytes = sizeof(Result) + kAlign + (size_t)(x.size / x.last * last * (x.bits / 8));
  const int size = kept_size(bytes);
  Result *result = (Result *)take(bytes, size);
  if (!result) return PyErr_NoMemory();
  result->size = size;
  char *place = (char *)(result + 1) + kAlign - 1;
  place -= (uintptr_t)place % kAlign;
  int64_t step = 1;
  for (int32_t d = x.ndim - 1; d >= 0; --d) {
    result->shape[d] = d == x.ndim - 1 ? last : x.shape[d];
    result->stride[d] = step;
    step *= result->shape[d];
  }
  result->managed = {{kMajor, kMinor}, result, release_result, 0,
                     {place, kHostMemory, 0, x.ndim, x.code, x.bits, 1, result->shape, result->stride, 0}};
  void *tensor = nullptr;
  // Whether a tensor that could not be made let go of its memory is not known: better never freed than freed twice.
  if (exchange->to_python(&result->managed, &tensor)) return nullptr;
  *data = (int64_t)(intptr_t)place;
  return (PyObject *)tensor;
}

// What an optional tensor of `size` float32 numbers is; 0 for None.
Found floats_of(PyObject *tensor, int64_t size, int64_t *word) {
  *word = 0;
  if (tensor == Py_None) return kFine;
  Dense dense;
  const Found found = dense_of(tensor, &dense);
  if (found != kFine) return found;
  if (!dense.is(kCodeFloat, 32) || dense.ndim != 1 || dense.size != size) return kUnusual;
  *word = dense.data;
  return kFine;
}

Found integer_of(PyObject *value, int64_t *number) {
  *number = (int64_t)PyLong_AsLongLong(value);
  return *number == -1 && PyErr_Occurred() ? kError : kFine;
}

// The items of a PackedWeight, borrowed.
bool parts_of(PyObject *weight, PyObject **parts) {
  if (!PyTuple_Check(weight) || PyTuple_Size(weight) != kParts) return false;
  for (int i = 0; i < kParts; ++i) parts[i] = PyTuple_GetItem(weight, i);
#if defined(__GNUC__)
  for (int i = 0; i < 3; ++i) __builtin_prefetch(parts[i]);  // looked at one after the other
#endif
  return true;
}

// A PackedWeight into the words of a layer.
Found weight_of(PyObject *const *items, int64_t k, int64_t group_size, int64_t *words) {
  int64_t size[3];  // n, k, group_size
  for (int i = 0; i < 3; ++i) {
    const Found found = integer_of(items[3 + i], size + i);
    if (found != kFine) return found;
  }
  if (size[1] != k || size[2] != group_size || size[0] < 1) return kUnusual;
  Dense parts[3];
  for (int i = 0; i < 3; ++i) {
    const Found found = dense_of(items[i], parts + i);
    if (found != kFine) return found;
  }
  const int64_t n = size[0], groups = group_size ? (k + group_size - 1) / group_size : 1;
  const Dense &data = parts[0];
  if (!data.is(kCodeInteger, 8) || data.ndim != 4 || data.shape[0] != (n + 63) / 64 || data.shape[1] != (k + 63) / 64 * 16 ||
      data.shape[2] != 64 || data.shape[3] != 4)
    return kUnusual;
  if (!parts[1].is(kCodeFloat, 32) || !parts[2].is(kCodeInteger, 32) || parts[1].size != groups * n || parts[2].size != groups * n)
    return kUnusual;
  words[0] = data.data, words[1] = parts[1].data, words[2] = parts[2].data, words[5] = words[6] = n;
  return kFine;
}

// x into the first words of a call. Gradients are the caller's affair.
Found rows_of(PyObject *tensor, Dense *x, int64_t *words) {
  Found found = dense_of(tensor, x);
  if (found == kFine) found = unseen();
  if (found != kFine) return found;
  if (!(x->is(kCodeFloat, 32) || x->is(kCodeBfloat, 16))) return kUnusual;
  words[0] = x->data, words[1] = x->size / x->last, words[2] = words[3] = x->last, words[4] = x->bits == 32 ? kF32 : kBF16;
  return kFine;
}

// The words of a layer but for its results; words[5] and words[6] of the call are its mode and group size.
Found layer_of(PyObject *const *parts, PyObject *bias, PyObject *activation, int64_t k, const int64_t *words, int64_t *layer) {
  Found found = weight_of(parts, k, words[6], layer);
  if (found == kFine) found = floats_of(bias, layer[5], layer + 3);
  if (found == kFine) found = integer_of(activation, layer + 7);
  return found == kFine && layer[7] < 0 ? kUnusual : found;
}

// Of the first layer; all must have it, and only one mode takes other than 0.
Found group_size_of(PyObject *const *parts, int64_t *words) {
  const Found found = integer_of(parts[5], words + 6);
  return found == kFine && words[6] && words[5] != kWeightOnly ? kUnusual : found;
}

Found threads_of(const Dense &x, int64_t columns, int64_t *words) {
  if (!ts_may_share(x.size / x.last, columns, padded(x.last))) return kFine;
  return number_of(PyObject_CallNoArgs(held[kThreads]), words + 9) ? kFine : kError;
}

// Calls the library; false: an exception is set.
bool run(int64_t address, const int64_t *words, int64_t count, bool brief) {
  const Function function = (Function)(intptr_t)address;
  int32_t code;
  if (brief) {
    code = function(words, count);
  } else {
    Py_BEGIN_ALLOW_THREADS
    code = function(words, count);
    Py_END_ALLOW_THREADS
  }
  if (!code) return true;
  Py_XDECREF(PyObject_CallFunction(held[kRefuse], "i", code));
  if (!PyErr_Occurred()) PyErr_Format(PyExc_RuntimeError, "the library gave the code %d", code);
  return false;
}

// linear(x, weight, bias, activation, mode): linears() of one layer, whose words are all that is touched, where no gradients are
// recorded.
PyObject *linear(PyObject *, PyObject *const *args, Py_ssize_t given) {
  if (given != 5) {
    PyErr_SetString(PyExc_TypeError, "linear() takes 5 arguments");
    return nullptr;
  }
  if (!exchange) Py_RETURN_NONE;
  ask_for_code(warm_int8, TS_INT8_WARM_RANGES);
  int64_t words[kFirstWords + kLayerWords] = {}, *const layer = words + kFirstWords;
  PyObject *parts[kParts];
  Dense x;
  Found found = parts_of(args[1], parts) ? rows_of(args[0], &x, words) : kUnusual;
  if (found == kFine) found = gradients();
  if (found == kFine) found = integer_of(args[4], words + 5);
  if (found == kFine) found = group_size_of(parts, words);
  if (found == kFine) found = layer_of(parts, args[2], args[3], x.last, words, layer);
  const int64_t columns = padded(layer[5]);
  if (found == kFine) found = threads_of(x, columns, words);
  if (found == kError) return nullptr;
  if (found == kUnusual) Py_RETURN_NONE;
  PyObject *result = result_like(x, layer[5], layer + 4);
  if (result && !run(linears_words, words, kFirstWords + kLayerWords, x.size * columns < kBriefProducts)) Py_CLEAR(result);
  return result;
}

// linears(x, weights, biases, activations, mode, norm, keep_normed, gated, residual): a list of results, or None where something
// is out of the ordinary. Lists are tuples; activations are their numbers.
PyObject *linears(PyObject *, PyObject *const *args, Py_ssize_t given) {
  if (given != 9) {
    PyErr_SetString(PyExc_TypeError, "linears() takes 9 arguments");
    return nullptr;
  }
  if (!exchange) Py_RETURN_NONE;
  ask_for_code(warm_int8, TS_INT8_WARM_RANGES);
  int64_t words[kFirstWords + kLayerWords * kMostLayers] = {}, columns = 0;
  Dense x;
  Found found = rows_of(args[0], &x, words);
  PyObject *weights = args[1], *biases = args[2], *activations = args[3], *norm = args[5], *added = args[8];
  const Py_ssize_t count = PyTuple_Check(weights) ? PyTuple_Size(weights) : 0;
  if (found == kFine && (count < 1 || count > kMostLayers || !PyTuple_Check(biases) || PyTuple_Size(biases) != count ||
                         !PyTuple_Check(activations) || PyTuple_Size(activations) != count))
    found = kUnusual;
  if (found == kFine) found = integer_of(args[4], words + 5);
  const int keep = PyObject_IsTrue(args[6]), gated = PyObject_IsTrue(args[7]);
  if (keep < 0 || gated < 0) found = kError;
  PyObject *parts[kParts];
  if (found == kFine) found = parts_of(PyTuple_GetItem(weights, 0), parts) ? group_size_of(parts, words) : kUnusual;
  if (found == kFine && norm != Py_None) {
    found = PyTuple_Check(norm) && PyTuple_Size(norm) == 3 ? kFine : kUnusual;
    if (found == kFine) found = floats_of(PyTuple_GetItem(norm, 0), x.last, words + 11);
    if (found == kFine) found = floats_of(PyTuple_GetItem(norm, 1), x.last, words + 12);
    if (found == kFine && !words[11]) found = kUnusual;
    const double epsilon = found == kFine ? PyFloat_AsDouble(PyTuple_GetItem(norm, 2)) : 0;
    if (epsilon == -1 && PyErr_Occurred()) found = kError;
    memcpy(words + 13, &epsilon, sizeof epsilon);
    words[10] = words[12] ? 2 : 1;
  }
  for (Py_ssize_t i = 0; found == kFine && i < count; ++i) {
    int64_t *layer = words + kFirstWords + kLayerWords * i;
    found = parts_of(PyTuple_GetItem(weights, i), parts) ? kFine : kUnusual;
    if (found == kFine) found = layer_of(parts, PyTuple_GetItem(biases, i), PyTuple_GetItem(activations, i), x.last, words, layer);
    columns += padded(layer[5]);
  }
  Dense residual;
  if (found == kFine && added != Py_None) {
    found = dense_of(added, &residual);
    const int64_t n = words[kFirstWords + 5];
    if (found == kFine && (residual.code != x.code || residual.bits != x.bits || residual.ndim != x.ndim || residual.last != n ||
                           memcmp(residual.shape, x.shape, sizeof(int64_t) * (size_t)(x.ndim - 1))))
      found = kUnusual;
    if (found == kFine) words[kFirstWords + 9] = residual.data;
  }
  if (found == kFine) found = threads_of(x, columns, words);
  if (found == kError) return nullptr;
  if (found == kUnusual) Py_RETURN_NONE;

  PyObject *results = PyList_New(0);
  for (Py_ssize_t i = 0; results && i < count; ++i) {
    int64_t *layer = words + kFirstWords + kLayerWords * i;
    PyObject *made = result_like(x, layer[5], layer + 4);
    if (gated && i) layer[8] = layer[4 - kLayerWords];
    if (!made || PyList_Append(results, made)) Py_CLEAR(results);
    Py_XDECREF(made);
  }
  if (results && keep) {
    PyObject *made = result_like(x, x.last, words + 14);
    if (!made || PyList_Append(results, made)) Py_CLEAR(results);
    Py_XDECREF(made);
  }
  if (results && !run(linears_words, words, kFirstWords + kLayerWords * count, x.size * columns < kBriefProducts)) Py_CLEAR(results);
  return results;
}

}  // namespace
