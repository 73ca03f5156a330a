// The quick way from Python into libtunesmith: no conversion by ctypes, no torch, one binary for every Python from 3.11.
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <stdint.h>
#include <string.h>

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
enum { kTensor, kFloat32, kBfloat16, kFloat16, kInt64, kThreads, kStack, kTransforms, kEmptyLike, kTemplates, kHeld };
PyObject *held[kHeld];
PyObject *n_dtype, *n_shape, *n_stride, *n_data_ptr, *n_is_cpu, *n_is_contiguous;
int64_t sample_words = 0;

// Tensors to make outputs like, by batch: torch.empty_like takes less than torch.empty. Nobody else ever holds them.
constexpr int64_t kSizes = 64;
struct {
  int64_t batch;
  PyObject *tensors;  // int64, uint8, float32
} templates[kSizes];

constexpr int64_t kBrief = 20000;  // values that take about 5 us: for less the interpreter is not let go

enum Found { kError, kUnusual, kFine };

// Takes over the reference to a result; an int64 out of it.
bool number_of(PyObject *value, int64_t *number) {
  if (!value) return false;
  *number = (int64_t)PyLong_AsLongLong(value);
  Py_DECREF(value);
  return *number != -1 || !PyErr_Occurred();
}

bool pointer_of(PyObject *tensor, int64_t *pointer) {
  return number_of(PyObject_CallMethodObjArgs(tensor, n_data_ptr, nullptr), pointer);
}

Found same(PyObject *value, PyObject *expected) {
  if (!value) return kError;
  Py_DECREF(value);
  return value == expected ? kFine : kUnusual;
}

// Sizes or strides into two numbers (1 where there is no second); kUnusual unless there are ndim of them.
Found pair_of(PyObject *tuple, Py_ssize_t ndim, int64_t *pair) {
  if (!tuple) return kError;
  Found found = PyTuple_Check(tuple) && PyTuple_Size(tuple) == ndim ? kFine : kUnusual;
  pair[1] = 1;
  for (Py_ssize_t i = 0; found == kFine && i < ndim; ++i) {
    PyObject *item = PyTuple_GetItem(tuple, i);
    Py_XINCREF(item);
    if (!number_of(item, pair + i)) found = kError;
  }
  Py_DECREF(tuple);
  return found;
}

// The data of a dense int64 tensor of `batch` rows.
Found ids_of(PyObject *tensor, Py_ssize_t ndim, int64_t batch, int64_t *pointer, int64_t *width) {
  int64_t shape[2];
  if ((PyObject *)Py_TYPE(tensor) != held[kTensor]) return kUnusual;
  Found found = same(PyObject_GetAttr(tensor, n_dtype), held[kInt64]);
  if (found == kFine) found = same(PyObject_GetAttr(tensor, n_is_cpu), Py_True);
  if (found == kFine) found = pair_of(PyObject_GetAttr(tensor, n_shape), ndim, shape);
  if (found == kFine && shape[0] != batch) found = kUnusual;
  if (found == kFine && (ndim > 1 || batch > 1))  // one number is dense whatever its stride
    found = same(PyObject_CallMethodObjArgs(tensor, n_is_contiguous, nullptr), Py_True);
  if (found == kFine && !pointer_of(tensor, pointer)) found = kError;
  if (found == kFine && width) *width = shape[1];
  return found;
}

Found zero_of(PyObject *function) {
  int64_t number;
  if (!number_of(PyObject_CallNoArgs(function), &number)) return kError;
  return number ? kUnusual : kFine;
}

Found logits_of(PyObject *logits, int64_t *words) {
  int64_t shape[2], stride[2];
  if ((PyObject *)Py_TYPE(logits) != held[kTensor]) return kUnusual;
  Found found = same(PyObject_GetAttr(logits, n_is_cpu), Py_True);
  if (found != kFine) return found;
  PyObject *dtype = PyObject_GetAttr(logits, n_dtype);
  if (!dtype) return kError;
  words[9] = dtype == held[kFloat32] ? 0 : dtype == held[kBfloat16] ? 1 : dtype == held[kFloat16] ? 2 : -1;
  Py_DECREF(dtype);
  if (words[9] < 0) return kUnusual;
  found = pair_of(PyObject_GetAttr(logits, n_shape), 2, shape);
  if (found == kFine) found = pair_of(PyObject_CallMethodObjArgs(logits, n_stride, nullptr), 2, stride);
  if (found != kFine) return found;
  if (stride[1] != 1 || !shape[0]) return kUnusual;
  words[6] = shape[0], words[7] = shape[1], words[8] = stride[0];
  return pointer_of(logits, words + 5) ? kFine : kError;
}

PyObject *templates_of(int64_t batch) {  // a new reference
  auto &place = templates[batch % kSizes];
  if (place.batch != batch || !place.tensors) {
    PyObject *made = PyObject_CallFunction(held[kTemplates], "L", (long long)batch);
    if (!made) return nullptr;
    if (!PyTuple_Check(made) || PyTuple_Size(made) != 3) {
      Py_DECREF(made);
      PyErr_SetString(PyExc_TypeError, "three tensors to make outputs like are needed");
      return nullptr;
    }
    PyObject *old = place.tensors;
    place.batch = batch, place.tensors = made;
    Py_INCREF(made);  // before the old one goes: that may run other code
    Py_XDECREF(old);
    return made;
  }
  Py_INCREF(place.tensors);
  return place.tensors;
}

// Takes the arguments of sample() apart.
Found sample_arguments(PyObject *const *args, int64_t *words) {
  PyObject *packed = args[0];  // address, count, batch (-1: any), whether the history is read
  int64_t plan[4], lengths = 0;
  if (!PyTuple_Check(packed) || PyTuple_Size(packed) != 4) return kUnusual;
  for (Py_ssize_t i = 0; i < 4; ++i) {
    PyObject *item = PyTuple_GetItem(packed, i);
    Py_XINCREF(item);
    if (!number_of(item, plan + i)) return kError;
  }
  Found found = zero_of(held[kStack]);
  if (found == kFine) found = zero_of(held[kTransforms]);
  if (found == kFine) found = logits_of(args[1], words);
  if (found != kFine) return found;
  const int64_t batch = words[6];
  if (plan[2] >= 0 && plan[2] != batch) return kUnusual;
  words[0] = plan[0], words[1] = plan[1];
  const int greedy = PyObject_IsTrue(args[7]);
  if (greedy < 0) return kError;
  words[2] = greedy;
  words[3] = (int64_t)PyLong_AsLongLong(args[8]);
  if (words[3] == -1 && PyErr_Occurred()) return kError;
  if (!number_of(PyObject_CallNoArgs(held[kThreads]), words + 4)) return kError;
  for (int i = 0; i < 3 && !greedy; ++i) {
    found = ids_of(args[2 + i], 1, batch, words + 10 + i, nullptr);
    if (found != kFine) return found;
  }
  if (!plan[3]) return kFine;
  found = ids_of(args[5], 2, batch, words + 13, words + 15);
  if (found == kFine && args[6] != Py_None) found = ids_of(args[6], 1, batch, &lengths, nullptr);
  words[14] = lengths;
  return found;
}

PyObject *sample(PyObject *, PyObject *const *args, Py_ssize_t given) {
  int64_t words[21] = {};
  if (given != 12 || !sample_words) {
    PyErr_SetString(PyExc_TypeError, "sample() takes 12 arguments, after setup()");
    return nullptr;
  }
  const Found found = sample_arguments(args, words);
  if (found == kError) return nullptr;
  if (found == kUnusual) Py_RETURN_NONE;
  PyObject *like = templates_of(words[6]), *result = like ? PyTuple_New(5) : nullptr;
  for (int i = 0; result && i < 5; ++i) {
    const int wanted = i < 2 ? 1 : PyObject_IsTrue(args[7 + i]);
    PyObject *output = nullptr;
    if (wanted > 0) {
      output = PyObject_CallFunctionObjArgs(held[kEmptyLike], PyTuple_GetItem(like, i < 2 ? i : 2), nullptr);
      if (output && !pointer_of(output, words + 16 + i)) Py_CLEAR(output);
    } else if (!wanted) {
      output = Py_None;
      Py_INCREF(output);
    }
    if (!output)
      Py_CLEAR(result);
    else
      PyTuple_SetItem(result, i, output);
  }
  Py_XDECREF(like);
  if (!result) return nullptr;
  const Function function = (Function)(intptr_t)sample_words;
  int32_t code;
  if (words[6] * words[7] < kBrief) {
    code = function(words, 21);
  } else {
    Py_BEGIN_ALLOW_THREADS
    code = function(words, 21);
    Py_END_ALLOW_THREADS
  }
  if (!code) return result;
  Py_DECREF(result);
  return PyLong_FromLong(code);
}

PyObject *setup(PyObject *, PyObject *const *args, Py_ssize_t given) {
  if (given != kHeld + 1) {
    PyErr_Format(PyExc_TypeError, "setup() takes %d arguments", kHeld + 1);
    return nullptr;
  }
  int64_t address = 0;
  if (!word_of(args[kHeld], &address)) return nullptr;
  for (int i = 0; i < kHeld; ++i) {
    Py_INCREF(args[i]);
    PyObject *old = held[i];
    held[i] = args[i];
    Py_XDECREF(old);
  }
  sample_words = address;
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"setup", (PyCFunction)(void *)setup, METH_FASTCALL,
     "setup(Tensor, float32, bfloat16, float16, int64, get_num_threads, dispatch_stack, transforms, empty_like, templates, "
     "address of ts_sample_words)"},
    {"sample", (PyCFunction)(void *)sample, METH_FASTCALL,
     "sample(packed, logits, seed, stream, position, history, lengths, greedy, draw, raw, processed, truncated): a tuple "
     "of outputs, the code of an error, or None where something is out of the ordinary."},
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
               {&n_data_ptr, "data_ptr"}, {&n_is_cpu, "is_cpu"}, {&n_is_contiguous, "is_contiguous"}};
  for (const auto &one : names)
    if (!*one.name && !(*one.name = PyUnicode_InternFromString(one.text))) return nullptr;
  return PyModule_Create(&module);
}
