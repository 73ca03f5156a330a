// The outputs of a sampling call, some of them made ahead. Included by call.cpp.
#pragma once

namespace {

// The outputs of a call: one piece of memory for all, which goes when the last tensor on it goes.
constexpr int kOutputs = 5;
constexpr struct {
  uint8_t code, bits;
  int empty;  // which of empty_options
} kinds[kOutputs] = {{kCodeInteger, 64, 0}, {kCodeUnsigned, 8, 1}, {kCodeFloat, 32, 2}, {kCodeFloat, 32, 2}, {kCodeFloat, 32, 2}};

struct Outputs {
  std::atomic<int32_t> tensors;
  int64_t shape, stride;
  Managed managed[kOutputs];
};

void release(Managed *managed) {
  Outputs *outputs = (Outputs *)managed->context;
  if (outputs->tensors.fetch_sub(1, std::memory_order_acq_rel) == 1) free(outputs);
}

// Makes wanted outputs, and puts their addresses into words; false: an exception is set.
bool exchange_outputs(int64_t batch, const bool *wanted, PyObject **made, int64_t *words) {
  constexpr size_t kAlign = 64;
  size_t size = sizeof(Outputs) + kAlign, offset[kOutputs];
  int32_t count = 0;
  for (int i = 0; i < kOutputs; ++i) {
    if (!wanted[i]) continue;
    offset[i] = size;
    size += ((size_t)batch * kinds[i].bits / 8 + kAlign - 1) / kAlign * kAlign;
    ++count;
  }
  Outputs *outputs = (Outputs *)malloc(size);
  if (!outputs) return PyErr_NoMemory(), false;
  new (&outputs->tensors) std::atomic<int32_t>(count);
  outputs->shape = batch, outputs->stride = 1;
  for (int i = 0; i < kOutputs; ++i) {
    if (!wanted[i]) continue;
    char *data = (char *)outputs + offset[i];
    data -= (uintptr_t)data % kAlign;
    outputs->managed[i] = {{kMajor, kMinor}, outputs, release, 0,
                           {data, kHostMemory, 0, 1, kinds[i].code, kinds[i].bits, 1, &outputs->shape, &outputs->stride, 0}};
    words[16 + i] = (int64_t)(intptr_t)data;
  }
  for (int i = 0; i < kOutputs; ++i) {
    if (!wanted[i]) continue;
    void *tensor = nullptr;
    // Whether a tensor that could not be made let go of its memory is not known: better never freed than freed twice.
    if (exchange->to_python(&outputs->managed[i], &tensor)) return false;
    made[i] = (PyObject *)tensor;
  }
  return true;
}

bool empty_outputs(int64_t batch, const bool *wanted, PyObject **made, int64_t *words) {
  for (int i = 0; i < kOutputs; ++i) {
    if (!wanted[i]) continue;
    PyObject *args = Py_BuildValue("(L)", (long long)batch);
    if (!args) return false;
    made[i] = PyObject_Call(held[kEmpty], args, empty_options[kinds[i].empty]);
    Py_DECREF(args);
    if (!made[i] || !number_of(PyObject_CallMethodObjArgs(made[i], n_data_ptr, nullptr), words + 16 + i)) return false;
  }
  return true;
}

// Outputs of later calls. To make or to let go of a tensor after other work means to wait for torch's code, line after line; to do
// so with more of them right then costs next to nothing. So they are made kAhead at a time, and tokens and states, which nothing
// but their own few bytes can hang on, are kept until the next are made.
constexpr int kAhead = 15, kKept = 2;
constexpr int64_t kStocked = 64;  // rows; above, a call takes so long that it does not matter

struct Stock {
  int64_t batch;  // of all that are here, and of the last call; 0: there was none
  bool wanted[kOutputs];
  bool inference;  // these are tensors of the inference mode, of little use outside of it
  int given, filled;
  struct Set {
    PyObject *made[kOutputs], *kept[kKept];
    int64_t words[kOutputs];
  } sets[kAhead];
};
Stock stock;

// Whether the inference mode is on; -1: an exception is set.
int inference_mode() {
  PyObject *on = quick_inference ? quick_inference(nullptr, nullptr) : PyObject_CallNoArgs(held[kInference]);
  if (!on) return -1;
  Py_DECREF(on);
  return on == Py_True;
}

void let_go(const Stock::Set &set) {
  for (PyObject *tensor : set.made) Py_XDECREF(tensor);
  for (PyObject *tensor : set.kept) Py_XDECREF(tensor);
}

// Anything may happen while a tensor is made or goes, another call too: the stock is in order before.
void empty_stock() {
  Stock::Set sets[kAhead];
  const int count = stock.filled;
  memcpy(sets, stock.sets, sizeof sets);
  stock.given = stock.filled = 0;
  for (int i = 0; i < count; ++i) let_go(sets[i]);
}

bool stock_is_of(int64_t batch, const bool *wanted) {
  return stock.batch == batch && !memcmp(stock.wanted, wanted, sizeof stock.wanted);
}

// Fills the empty stock; false: an exception is set.
bool fill_stock(int64_t batch, const bool *wanted) {
  const int mode = inference_mode();
  if (mode < 0) return false;
  for (int i = 0; i < kAhead; ++i) {
    int64_t words[16 + kOutputs] = {};
    Stock::Set set = {};
    const bool fine = exchange_outputs(batch, wanted, set.made, words);
    if (!fine || !stock_is_of(batch, wanted) || stock.given || stock.filled != i) return let_go(set), fine;
    for (int kept = 0; kept < kKept; ++kept) Py_XINCREF(set.kept[kept] = set.made[kept]);
    memcpy(set.words, words + 16, sizeof set.words);
    stock.sets[stock.filled++] = set;
    stock.inference = mode;
  }
  return true;
}

// As exchange_outputs; from the stock if the last call was of the same kind.
bool stocked_outputs(int64_t batch, const bool *wanted, PyObject **made, int64_t *words) {
  if (!stock_is_of(batch, wanted)) {
    stock.batch = batch;
    memcpy(stock.wanted, wanted, sizeof stock.wanted);
    empty_stock();
    return exchange_outputs(batch, wanted, made, words);
  }
  if (batch > kStocked) return exchange_outputs(batch, wanted, made, words);
  if (stock.given < stock.filled && stock.inference) {
    const int mode = inference_mode();
    if (mode < 0) return false;
    if (!mode) empty_stock();
  }
  if (stock.given == stock.filled) {
    empty_stock();
    if (!fill_stock(batch, wanted)) return false;
  }
  // While tensors were made or went another thread may have called: the stock may be of its kind now, and too small for this one.
  // Nothing comes between this look and the taking.
  const int mode = stock.inference ? inference_mode() : 0;
  if (mode < 0) return false;
  if (stock.given == stock.filled || !stock_is_of(batch, wanted) || (stock.inference && !mode)) {
    return exchange_outputs(batch, wanted, made, words);
  }
  Stock::Set &set = stock.sets[stock.given++];
  memcpy(made, set.made, sizeof set.made);
  memset(set.made, 0, sizeof set.made);
  memcpy(words + 16, set.words, sizeof set.words);
  return true;
}

}  // namespace
