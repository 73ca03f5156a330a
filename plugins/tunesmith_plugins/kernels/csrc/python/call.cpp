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

PyMethodDef methods[] = {
    {"call", (PyCFunction)(void *)call, METH_FASTCALL, "call(address, *words): the code that the function returns."},
    {"call_released", (PyCFunction)(void *)call_released, METH_FASTCALL, "The same, other Python threads running meanwhile."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "tunesmith_call", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit_tunesmith_call(void) { return PyModule_Create(&module); }
