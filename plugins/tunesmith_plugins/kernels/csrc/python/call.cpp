// The quick way from Python into libtunesmith: no conversion by ctypes, no torch, one binary for every Python from 3.11.
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <new>

#include "dlpack.h"
#include "tunesmith.h"

namespace {

constexpr Py_ssize_t kMost = 512;

typedef int32_t (*Function)(const int64_t *words, int64_t count);

// Integers as they are, None as 0, floats as the bits of a double.
bool word_of(PyObject *value, int64_t *word) {
  if (value == Py_None) {
    *word = 0;
    return true;
  }
  if (PyFloat_Check(value)) {
    const double number = PyFloat_AsDouble(value);
    memcpy(word, &number, sizeof number);
    return true;
  }
  *word = (int64_t)PyLong_AsLongLong(value);
  return *word != -1 || !PyErr_Occurred();
}

// -1 in *count: an exception is set.
Function words_of(PyObject *const *args, Py_ssize_t given, int64_t *words, int64_t *count) {
  *count = -1;
  int64_t address = 0;
  if (given < 1 || given > kMost) {
    PyErr_Format(PyExc_TypeError, "an address and at most %zd words are needed, not %zd arguments", kMost - 1, given);
    return nullptr;
  }
  if (!word_of(args[0], &address)) return nullptr;
  for (Py_ssize_t i = 1; i < given; ++i)
    if (!word_of(args[i], words + i - 1)) return nullptr;
  if (!address) {
    PyErr_SetString(PyExc_ValueError, "the address of a function is needed, not null");
    return nullptr;
  }
  *count = given - 1;
  return (Function)(intptr_t)address;
}

PyObject *call(PyObject *, PyObject *const *args, Py_ssize_t given) {
  int64_t words[kMost], count;
  const Function function = words_of(args, given, words, &count);
  return count < 0 ? nullptr : PyLong_FromLong(function(words, count));
}

PyObject *call_released(PyObject *, PyObject *const *args, Py_ssize_t given) {
  int64_t words[kMost], count;
  const Function function = words_of(args, given, words, &count);
  if (count < 0) return nullptr;
  int32_t code;
  Py_BEGIN_ALLOW_THREADS
  code = function(words, count);
  Py_END_ALLOW_THREADS
  return PyLong_FromLong(code);
}

// ---- sample: the tensors of a sampling call read here, since each step of Python costs more than a row of a small model

// What setup() gave, for as long as the process lives.
enum {
  kTensor, kParameter, kFloat32, kBfloat16, kFloat16, kInt64, kUint8, kThreads, kModes, kStack, kTransforms, kGradients, kEmpty, kRefuse,
  kInference, kExchange, kHeld
};
PyObject *held[kHeld];
PyObject *is_neg;          // Tensor.is_neg
// What it calls, where that is plain (finding it out anew after other work takes a microsecond), and what is_inference_mode_enabled is.
PyCFunction quick_is_neg, quick_inference;
PyObject *n_dtype, *n_shape, *n_stride, *n_data_ptr, *n_is_cpu, *n_in_mode;
PyObject *empty_options[3];  // {"dtype": ..., "device": "cpu"} for int64, uint8, float32
int64_t sample_words = 0, linears_words = 0, attention_words = 0;
int64_t warm_code[2 * TS_WARM_RANGES];  // an address and a number of bytes, each
int32_t last_dtype = 0;                 // of logits: the next are likely of the same type
int64_t warm_int8[2 * TS_INT8_WARM_RANGES];
const Exchange *exchange = nullptr;  // null: tensors are read through their attributes

constexpr int64_t kBrief = 50000;   // values that take about 10 us: for less the interpreter is not let go
constexpr int64_t kShared = 40000;  // for less the library never asks how many threads there are

enum Found { kError, kUnusual, kFine };

// A dense or strided tensor of the CPU.
struct View {
  int64_t data;
  int32_t dtype;  // ts_dtype, -1: another
  int32_t ndim;
  int64_t shape[2], stride[2];
};
enum { kF32 = 0, kBF16 = 1, kF16 = 2, kI64 = 4 };

// Whether torch negates a tensor of floating point when it reads it, as the imaginary part of a conjugate. It shows in no field of
// DLPack, and as_strided makes such a view as dense as any other.
Found plain_sign(PyObject *tensor) {
  PyObject *negated = quick_is_neg ? quick_is_neg(tensor, nullptr) : PyObject_CallFunctionObjArgs(is_neg, tensor, nullptr);
  if (!negated) return kError;
  Py_DECREF(negated);
  return negated == Py_False ? kFine : kUnusual;
}

// Takes over the reference to a result; an int64 out of it.
bool number_of(PyObject *value, int64_t *number) {
  if (!value) return false;
  *number = (int64_t)PyLong_AsLongLong(value);
  Py_DECREF(value);
  return *number != -1 || !PyErr_Occurred();
}

Found zero_of(PyObject *function) {
  int64_t number;
  if (!number_of(PyObject_CallNoArgs(function), &number)) return kError;
  return number ? kUnusual : kFine;
}

// Sizes or strides of at most two dimensions into numbers; the number of them, 0 if there are none or more, -1: error.
int32_t pair_of(PyObject *tuple, int64_t *pair) {
  if (!tuple) return -1;
  Py_ssize_t count = PyTuple_Check(tuple) ? PyTuple_Size(tuple) : 0;
  if (count > 2) count = 0;
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject *item = PyTuple_GetItem(tuple, i);
    Py_XINCREF(item);
    if (!number_of(item, pair + i)) count = -1;
  }
  Py_DECREF(tuple);
  return (int32_t)count;
}

Found attributes_of(PyObject *tensor, View *view) {
  PyObject *cpu = PyObject_GetAttr(tensor, n_is_cpu);
  if (!cpu) return kError;
  Py_DECREF(cpu);
  if (cpu != Py_True) return kUnusual;
  PyObject *dtype = PyObject_GetAttr(tensor, n_dtype);
  if (!dtype) return kError;
  Py_DECREF(dtype);
  view->dtype = dtype == held[kFloat32]    ? kF32
                : dtype == held[kBfloat16] ? kBF16
                : dtype == held[kFloat16]  ? kF16
                : dtype == held[kInt64]    ? kI64
                                           : -1;
  view->ndim = pair_of(PyObject_GetAttr(tensor, n_shape), view->shape);
  if (view->ndim < 0 || pair_of(PyObject_CallMethodObjArgs(tensor, n_stride, nullptr), view->stride) < 0) return kError;
  return number_of(PyObject_CallMethodObjArgs(tensor, n_data_ptr, nullptr), &view->data) ? kFine : kError;
}

Found view_of(PyObject *tensor, View *view) {
  if ((PyObject *)Py_TYPE(tensor) != held[kTensor]) return kUnusual;
  if (!exchange) return attributes_of(tensor, view);
  Borrowed borrowed;
  if (exchange->borrow(tensor, &borrowed)) {
    PyErr_Clear();  // no plain memory behind it; the other way says what is wrong
    return kUnusual;
  }
  if (borrowed.device_type != kHostMemory || borrowed.lanes != 1 || borrowed.ndim < 1 || borrowed.ndim > 2) return kUnusual;
  view->data = (int64_t)(intptr_t)borrowed.data + (int64_t)borrowed.byte_offset;
  view->dtype = borrowed.code == kCodeFloat && borrowed.bits == 32       ? kF32
                : borrowed.code == kCodeBfloat && borrowed.bits == 16    ? kBF16
                : borrowed.code == kCodeFloat && borrowed.bits == 16     ? kF16
                : borrowed.code == kCodeInteger && borrowed.bits == 64 ? kI64
                                                                         : -1;
  view->ndim = borrowed.ndim;
  memcpy(view->shape, borrowed.shape, (size_t)borrowed.ndim * sizeof(int64_t));
  memcpy(view->stride, borrowed.strides, (size_t)borrowed.ndim * sizeof(int64_t));
  return kFine;
}

// The data of a dense int64 tensor of `batch` rows.
Found ids_of(PyObject *tensor, int32_t ndim, int64_t batch, int64_t *pointer, int64_t *width) {
  View view;
  const Found found = view_of(tensor, &view);
  if (found != kFine) return found;
  if (view.dtype != kI64 || view.ndim != ndim || view.shape[0] != batch) return kUnusual;
  // the stride of a dimension of one number means nothing
  const int64_t across = ndim == 2 ? view.shape[1] : 1;
  if (ndim == 2 && across > 1 && view.stride[1] != 1) return kUnusual;
  if (batch > 1 && view.stride[0] != across) return kUnusual;
  *pointer = view.data;
  if (width) *width = across;
  return kFine;
}

Found logits_of(PyObject *logits, int64_t *words) {
  View view;
  const Found found = view_of(logits, &view);
  if (found != kFine) return found;
  if (view.dtype < kF32 || view.dtype > kF16 || view.ndim != 2 || (view.stride[1] != 1 && view.shape[1] != 1) || !view.shape[0])
    return kUnusual;
  const Found sign = plain_sign(logits);
  if (sign != kFine) return sign;
  words[5] = view.data;
  last_dtype = view.dtype;
  words[6] = view.shape[0], words[7] = view.shape[1], words[8] = view.stride[0], words[9] = view.dtype;
  return kFine;
}

// Whether nobody wants to see the operations that are called: no dispatch mode, no transform of functions. The flag says of
// any thread what the function says of this one, and costs far less. Tensors under a transform have no memory of their own,
// so DLPack refuses them without being asked about transforms.
Found unseen() {
  PyObject *in_mode = held[kModes] == Py_None ? nullptr : PyDict_GetItemWithError(held[kModes], n_in_mode);
  if (in_mode && in_mode != Py_False) return kUnusual;
  if (!in_mode) {
    if (PyErr_Occurred()) return kError;
    const Found found = zero_of(held[kStack]);
    if (found != kFine) return found;
  }
  return exchange ? kFine : zero_of(held[kTransforms]);
}

// What stands before the steps that a Plan points to.
struct PlanHead {
  int64_t count;
  int64_t batch;    // -1: any
  int64_t history;  // whether it is read
};

// Has the processor fetch what will be read; of any address.
void ask_for(const void *begin, int64_t bytes) {
#if defined(__GNUC__)
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch((const char *)begin + at, 0, 2);
#else
  (void)begin, (void)bytes;
#endif
}

// Takes the arguments of sample() apart.
Found sample_arguments(PyObject *const *args, int64_t *words) {
  const void *steps = PyLong_AsVoidPtr(args[0]);
  if (!steps) return PyErr_Occurred() ? kError : kUnusual;
  const PlanHead *plan = (const PlanHead *)steps - 1;
  ask_for(plan, 512);
  Found found = logits_of(args[1], words);
  if (found == kFine) found = unseen();
  if (found != kFine) return found;
  const int64_t batch = words[6];
  if (plan->batch >= 0 && plan->batch != batch) return kUnusual;
  for (int64_t i = 0; i < plan->count; ++i) ask_for(((const ts_step *)steps)[i].values, 8);
  words[0] = (int64_t)(intptr_t)steps, words[1] = plan->count;
  const int greedy = PyObject_IsTrue(args[7]);
  if (greedy < 0) return kError;
  words[2] = greedy;
  words[3] = (int64_t)PyLong_AsLongLong(args[8]);
  if (words[3] == -1 && PyErr_Occurred()) return kError;
  if (batch > 1 && batch * words[7] >= kShared && !number_of(PyObject_CallNoArgs(held[kThreads]), words + 4)) return kError;
  for (int i = 0; i < 3 && !greedy; ++i) {
    found = ids_of(args[2 + i], 1, batch, words + 10 + i, nullptr);
    if (found != kFine) return found;
  }
  if (!plan->history) return kFine;
  found = ids_of(args[5], 2, batch, words + 13, words + 15);
  if (found == kFine) ask_for((const void *)(intptr_t)words[13], words[15] * 8 < 4096 ? words[15] * 8 : 4096);
  if (found == kFine && args[6] != Py_None) found = ids_of(args[6], 1, batch, words + 14, nullptr);
  return found;
}

}  // namespace

#include "outputs.h"

namespace {

// A tuple of the class with the outputs, whose references it takes over; None in place of null.
PyObject *result_of(PyObject *type, PyObject **made) {
  const allocfunc allocate = (allocfunc)PyType_GetSlot((PyTypeObject *)type, Py_tp_alloc);
  PyObject *result = allocate((PyTypeObject *)type, kOutputs);
  for (int i = 0; i < kOutputs; ++i) {
    if (!made[i]) {
      made[i] = Py_None;
      Py_INCREF(Py_None);
    }
    if (result) PyTuple_SetItem(result, i, made[i]);
    else Py_DECREF(made[i]);
  }
  return result;
}

// Asks for the library's code. Between two tokens of a model the caches are used for other things, and the library is too
// far off for the processor to guess what comes: line after line would be waited for.
void ask_for_code(const int64_t *code, int ranges) {
  for (int i = 0; i < ranges; ++i) ask_for((const void *)(intptr_t)code[2 * i], code[2 * i + 1]);
  ask_for((const void *)(intptr_t)quick_is_neg, 512);
}

PyObject *sample(PyObject *, PyObject *const *args, Py_ssize_t given) {
  ask_for_code(warm_code, TS_WARM_COMMON);
  ask_for_code(warm_code + 2 * (TS_WARM_COMMON + last_dtype * TS_WARM_TYPED), TS_WARM_TYPED);
  int64_t words[21] = {};
  if (given != 13 || !sample_words || !PyType_Check(args[12]) ||
      !PyType_IsSubtype((PyTypeObject *)args[12], &PyTuple_Type)) {
    PyErr_SetString(PyExc_TypeError, "sample() takes 12 arguments and a class of tuples, after setup()");
    return nullptr;
  }
  const Found found = sample_arguments(args, words);
  if (found == kError) return nullptr;
  if (found == kUnusual) Py_RETURN_NONE;
  bool wanted[kOutputs] = {true, true};
  for (int i = 2; i < kOutputs; ++i) {
    const int asked = PyObject_IsTrue(args[7 + i]);
    if (asked < 0) return nullptr;
    wanted[i] = asked;
  }
  PyObject *made[kOutputs] = {};
  int32_t code = -1;
  if ((exchange ? stocked_outputs : empty_outputs)(words[6], wanted, made, words)) {
    const Function function = (Function)(intptr_t)sample_words;
    if (words[6] * words[7] < kBrief) {
      code = function(words, 21);
    } else {
      Py_BEGIN_ALLOW_THREADS
      code = function(words, 21);
      Py_END_ALLOW_THREADS
    }
    if (!code) return result_of(args[12], made);
  }
  for (PyObject *tensor : made) Py_XDECREF(tensor);
  if (code < 0) return nullptr;
  Py_XDECREF(PyObject_CallFunction(held[kRefuse], "i", code));
  if (!PyErr_Occurred()) PyErr_Format(PyExc_RuntimeError, "the library gave the code %d", code);
  return nullptr;
}

}  // namespace

#include "linears.h"
#include "attention.h"

namespace {

// What an object calls without arguments; null where that is not plain.
PyCFunction plain_function(PyObject *object) {
  return PyCFunction_Check(object) && PyCFunction_GetFlags(object) == METH_NOARGS ? PyCFunction_GetFunction(object) : nullptr;
}

// Sets is_neg, quick_is_neg and quick_inference; false: an exception is set.
bool set_up_sign() {
  PyObject *method = PyObject_GetAttrString(held[kTensor], "is_neg"), *before = is_neg;
  if (!method) return false;
  is_neg = method;
  Py_XDECREF(before);
  PyObject *size = Py_BuildValue("(i)", 1), *one = size ? PyObject_Call(held[kEmpty], size, empty_options[2]) : nullptr;
  PyObject *bound = one ? PyObject_GetAttrString(one, "is_neg") : nullptr;
  quick_is_neg = bound ? plain_function(bound) : nullptr;
  quick_inference = plain_function(held[kInference]);
  const bool fine = bound != nullptr;
  Py_XDECREF(bound);
  Py_XDECREF(one);
  Py_XDECREF(size);
  return fine;
}

PyObject *setup(PyObject *, PyObject *const *args, Py_ssize_t given) {
  constexpr int kAddresses = 5;
  if (given != kHeld + kAddresses) {
    PyErr_Format(PyExc_TypeError, "setup() takes %d arguments", kHeld + kAddresses);
    return nullptr;
  }
  int64_t address[kAddresses] = {};
  for (int i = 0; i < kAddresses; ++i)
    if (!word_of(args[kHeld + i], address + i)) return nullptr;
  const Exchange *table = nullptr;
  if (args[kExchange] != Py_None) {
    table = (const Exchange *)PyCapsule_GetPointer(args[kExchange], "dlpack_exchange_api");
    if (!table) return nullptr;
    if (table->major != kMajor || !table->borrow || !table->to_python) table = nullptr;  // another layout
  }
  PyObject *const dtypes[] = {args[kInt64], args[kUint8], args[kFloat32]};
  for (int i = 0; i < 3; ++i) {
    PyObject *options = Py_BuildValue("{sOss}", "dtype", dtypes[i], "device", "cpu"), *old = empty_options[i];
    if (!options) return nullptr;
    empty_options[i] = options;
    Py_XDECREF(old);
  }
  for (int i = 0; i < kHeld; ++i) {
    Py_INCREF(args[i]);
    PyObject *old = held[i];
    held[i] = args[i];
    Py_XDECREF(old);
  }
  if (!set_up_sign()) return nullptr;
  exchange = table;
  sample_words = address[0], linears_words = address[1];
  ((int32_t (*)(int64_t *))(intptr_t)address[2])(warm_code);
  ((int32_t (*)(int64_t *))(intptr_t)address[3])(warm_int8);
  attention_words = address[4];
  return PyBool_FromLong(table != nullptr);
}

PyMethodDef methods[] = {
    {"setup", (PyCFunction)(void *)setup, METH_FASTCALL,
     "setup(Tensor, Parameter, float32, bfloat16, float16, int64, uint8, get_num_threads, names of the module of modes, "
     "dispatch_stack, transforms, is_grad_enabled, empty, refuse, is_inference_mode_enabled, __dlpack_c_exchange_api__ or None, addresses of "
     "ts_sample_words, ts_int8_linears_words, ts_warm_code, ts_int8_warm_code and ts_float_attention_words): whether tensors are exchanged through DLPack."},
    {"sample", (PyCFunction)(void *)sample, METH_FASTCALL,
     "sample(plan, logits, seed, stream, position, history, lengths, greedy, draw, raw, processed, truncated, result): a "
     "tuple of the class result, or None where something is out of the ordinary."},
    {"linears", (PyCFunction)(void *)linears, METH_FASTCALL,
     "linears(x, weights, biases, activations, mode, norm, keep_normed, gated, residual): a list of results, or None "
     "where something is out of the ordinary."},
    {"linear", (PyCFunction)(void *)linear, METH_FASTCALL,
     "linear(x, weight, bias, activation, mode): the result of one layer, or None where gradients are recorded or something else is "
     "out of the ordinary."},
    {"attend", (PyCFunction)(void *)attend, METH_FASTCALL,
     "attend(q, k, v, keys, values, mask, scale, rotary): attention over a cache, or None where something is out of the ordinary."},
    {"call", (PyCFunction)(void *)call, METH_FASTCALL, "call(address, *words): the code that the function returns."},
    {"call_released", (PyCFunction)(void *)call_released, METH_FASTCALL, "The same, other Python threads running meanwhile."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "tunesmith_call", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit_tunesmith_call(void) {
  const struct {
    PyObject **name;
    const char *text;
  } names[] = {{&n_dtype, "dtype"},       {&n_shape, "shape"},   {&n_stride, "stride"},
               {&n_data_ptr, "data_ptr"}, {&n_is_cpu, "is_cpu"},  {&n_in_mode, "_is_in_torch_dispatch_mode"}};
  for (const auto &one : names)
    if (!*one.name && !(*one.name = PyUnicode_InternFromString(one.text))) return nullptr;
  return PyModule_Create(&module);
}
