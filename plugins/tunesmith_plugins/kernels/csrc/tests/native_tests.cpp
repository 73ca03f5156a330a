// Checks of the libraries that need no Python, run under AddressSanitizer and UndefinedBehaviorSanitizer: every
// buffer has exactly the size the interface asks for. Prints what was checked; exits with 1 at the first failure.
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__unix__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../cpu/short_list.h"
#include "numeric.h"
#include "sampling.h"
#include "tunesmith.h"
#include "watched_selection.h"

#define REQUIRE(condition)                                                     \
  do {                                                                         \
    if (!(condition)) {                                                        \
      fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
      exit(1);                                                                 \
    }                                                                          \
  } while (0)

namespace {

std::mt19937_64 generator(20240607);

int64_t pick(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }
double real(double low, double high) { return std::uniform_real_distribution<double>(low, high)(generator); }

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names(1);
  for (const char *c = ts_isa_available(); *c; ++c) {
    if (*c == ',') names.emplace_back();
    else names.back() += *c;
  }
  return names;
}

// A heap array of exactly n items, so that one item too far is seen.
template <typename T>
std::unique_ptr<T[]> exactly(int64_t n) {
  return std::unique_ptr<T[]>(new T[(size_t)n]());
}

template <typename T>
bool same(const T *a, const T *b, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if (!(a[i] == b[i] || (a[i] != a[i] && b[i] != b[i]))) return false;
  }
  return true;
}

void arithmetic() {
  // Known answers of Random123 for Philox4x32-10, first two words.
  REQUIRE(ts_uniform_bits(0, 0, 0, 0) == 0xe169c58d6627e8d5u);
  REQUIRE(ts_uniform_bits(-1, -1, 0xffffffff, 0xffffffff) == 0x41c83b0e408f276du);
  for (int i = 0; i < 200000; ++i) {
    const float d = (float)-real(0, i % 2 ? 20 : 86);
    REQUIRE(fabs((double)ts_exp(d) / exp((double)d) - 1) < 2.5e-7);
    const double v = exp(real(-40, 40));
    REQUIRE(fabs((double)(ts_log(v) - logl((long double)v))) < 1e-14);
  }
  REQUIRE(ts_exp(0) == 1 && ts_exp(-HUGE_VALF) == ts_exp(-86) && ts_weight(ts_exp(-32), 0x1p44) == 0);
  REQUIRE(ts_log(1) == 0);
  for (int64_t vocab = 1; vocab <= (int64_t(1) << 30); vocab *= 2) {
    REQUIRE(((uint64_t)vocab << ts_weight_bits(vocab)) < (uint64_t(1) << 63));
    REQUIRE(((uint64_t)(vocab + 1) << ts_weight_bits(vocab + 1)) < (uint64_t(1) << 63));
  }
#if defined(__SIZEOF_INT128__)
  for (int i = 0; i < 10000; ++i) {
    const uint64_t a = generator(), b = generator() >> 1;
    REQUIRE(ts_mulhi(a, b) == (uint64_t)(((unsigned __int128)a * b) >> 64));
  }
#endif
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float wide = ts_bf16_to_float((uint16_t)bits);
    if (wide == wide) REQUIRE(ts_float_to_bf16(wide) == bits);
#if defined(__FLT16_MANT_DIG__)
    _Float16 half;
    const uint16_t narrow = (uint16_t)bits;
    memcpy(&half, &narrow, 2);
    const float expected = (float)half, found = ts_f16_to_float(narrow);
    REQUIRE(same(&found, &expected, 1));
#endif
  }
  puts("arithmetic: exp, log, Philox, 16-bit floats");
}

struct Outputs {
  explicit Outputs(int64_t batch, int64_t vocab)
      : token(exactly<int64_t>(batch)), status(exactly<uint8_t>(batch)), raw(exactly<float>(batch)),
        processed(exactly<float>(batch)), truncated(exactly<float>(batch)), logits(exactly<float>(batch * vocab)),
        count(vocab < kTop ? vocab : kTop) {
    for (int which = 0; which < 3; ++which) {
      top_ids[which] = exactly<int64_t>(batch * count);
      tops[which] = exactly<float>(batch * count);
    }
  }
  void into(ts_sample_args *a) {
    a->token = token.get();
    a->status = status.get();
    a->logp_raw = raw.get();
    a->logp_processed = processed.get();
    a->logp_truncated = truncated.get();
    a->out_logits = logits.get();
  }
  void tops_into(ts_sample_args *a) {
    a->top_count = kTop;
    a->top_raw_ids = top_ids[0].get();
    a->top_processed_ids = top_ids[1].get();
    a->top_truncated_ids = top_ids[2].get();
    a->top_raw = tops[0].get();
    a->top_processed = tops[1].get();
    a->top_truncated = tops[2].get();
  }
  bool same_tops(const Outputs &other, int64_t batch) const {
    bool equal = true;
    for (int which = 0; which < 3; ++which) {
      equal &= same(top_ids[which].get(), other.top_ids[which].get(), batch * count);
      equal &= same(tops[which].get(), other.tops[which].get(), batch * count);
    }
    return equal;
  }
  static constexpr int64_t kTop = 9;
  bool equals(const Outputs &other, int64_t batch, int64_t vocab) const {
    return same(token.get(), other.token.get(), batch) && same(status.get(), other.status.get(), batch) &&
           same(raw.get(), other.raw.get(), batch) && same(processed.get(), other.processed.get(), batch) &&
           same(truncated.get(), other.truncated.get(), batch) && same(logits.get(), other.logits.get(), batch * vocab);
  }
  std::unique_ptr<int64_t[]> token;
  std::unique_ptr<uint8_t[]> status;
  std::unique_ptr<float[]> raw, processed, truncated, logits;
  int64_t count;
  std::unique_ptr<int64_t[]> top_ids[3];
  std::unique_ptr<float[]> tops[3];
};

// What a step names, in memory of exactly its size.
struct Lists {
  std::vector<std::unique_ptr<int64_t[]>> ids;
  std::vector<std::unique_ptr<int32_t[]>> words;
  std::vector<std::unique_ptr<float[]>> amounts;
  std::vector<std::unique_ptr<double[]>> seconds;

  void add(ts_step *step, int64_t batch, int64_t vocab) {
    if (step->op == TS_DYNAMIC_TEMPERATURE || step->op == TS_TOP_P_TIES) {
      seconds.push_back(exactly<double>(2 * batch));
      for (int64_t i = 0; i < 2 * batch; ++i) {
        const bool ties = step->op == TS_TOP_P_TIES;
        seconds.back()[(size_t)i] = !ties ? real(.05, 3) : (double)(i % 2 ? pick(0, 2) : pick(0, 1) ? 1 : pick(1, vocab + 3));
      }
      step->second = seconds.back().get();
      step->second_stride = 2;
      return;
    }
    if (step->op > TS_MASK) {
      const bool count = step->op == TS_TYPICAL || step->op == TS_TOP_H || step->op == TS_MIROSTAT;
      if (!count && step->op != TS_XTC && step->op != TS_WATERMARK) return;
      seconds.push_back(exactly<double>(batch));
      for (int64_t row = 0; row < batch; ++row)
        seconds.back()[(size_t)row] = count ? (double)pick(1, vocab + 3) : step->op == TS_XTC ? (double)pick(0, 1) : real(0, 1);
      step->second = seconds.back().get();
      step->second_stride = 1;
      if (step->op != TS_WATERMARK) return;
      step->width = step->ids_stride = 2;
      ids.push_back(exactly<int64_t>(2 * batch));
      for (int64_t row = 0; row < batch; ++row) {
        ids.back()[(size_t)(2 * row)] = (int64_t)generator();
        ids.back()[(size_t)(2 * row + 1)] = pick(1, 4);
      }
      step->ids = ids.back().get();
      return;
    }
    const int64_t rows = pick(0, 1) ? batch : 1;
    if (step->op == TS_MASK) {
      step->width = pick(0, (vocab + 31) / 32);
      words.push_back(exactly<int32_t>(rows * step->width));
      for (int64_t i = 0; i < rows * step->width; ++i) words.back()[(size_t)i] = (int32_t)(generator() | (pick(0, 3) ? 0 : generator()));
      step->ids = words.back().get();
    } else {
      const bool penalty = step->op == TS_REPETITION_PENALTY || step->op == TS_PRESENCE_PENALTY || step->op == TS_FREQUENCY_PENALTY;
      if (step->op == TS_TEMPERATURE || (step->op >= TS_TOP_K && step->op <= TS_MIN_P) || (penalty && pick(0, 1))) return;
      step->width = pick(0, 9);
      ids.push_back(exactly<int64_t>(rows * step->width));
      for (int64_t i = 0; i < rows * step->width; ++i) ids.back()[(size_t)i] = pick(-1, vocab);
      step->ids = ids.back().get();
      if (step->op == TS_BIAS && pick(0, 1)) {
        amounts.push_back(exactly<float>(rows * step->width));
        for (int64_t i = 0; i < rows * step->width; ++i) amounts.back()[(size_t)i] = (float)real(-3, 3);
        step->amounts = amounts.back().get();
        step->amounts_stride = rows > 1 ? step->width : 0;
      }
    }
    step->ids_stride = rows > 1 ? step->width : 0;
  }
};

double value_of(int32_t op, int64_t vocab) {
  switch (op) {
    case TS_TOP_K:
    case TS_TOP_K_LOW:
      return (double)pick(-1, vocab + 2);
    case TS_MIROSTAT:
      return pick(0, 20) ? real(-3, 12) : real(-1e300, 1e300);
    case TS_TOP_P:
    case TS_TOP_P_TIES:
    case TS_MIN_P:
    case TS_TOP_A:
    case TS_TYPICAL:
    case TS_TOP_H:
      return real(0, 1);
    case TS_EPSILON:
    case TS_ETA:
    case TS_XTC:
      return pick(0, 9) ? real(0, .2) : 0;
    case TS_PRESENCE_PENALTY:
    case TS_FREQUENCY_PENALTY:
    case TS_BIAS:
    case TS_WATERMARK:
      return pick(0, 20) ? real(-3, 3) : real(-3e38, 3e38);
    case TS_LENGTH_DECAY:
      return pick(0, 20) ? real(-1, 3) : 1e300;
    case TS_BAN:
    case TS_ALLOW:
    case TS_MASK:
      return pick(0, 3) ? 1 : 0;
    default:
      return real(.05, 3);
  }
}

void chains() {
  const float special[] = {NAN, HUGE_VALF, -HUGE_VALF, -HUGE_VALF, 0.0f, -0.0f, 1e-42f, 3e38f, -3e38f};
  int64_t compared = 0, on_threads = 0;
  for (int trial = 0; trial < 500; ++trial) {
    const int64_t batch = pick(1, 4), vocab = pick(1, trial % 10 == 9 ? 3000 : trial % 5 ? 70 : 700), stride = vocab + pick(0, 3), width = pick(0, 6);
    const int64_t extent = (batch - 1) * stride + vocab;
    const int32_t dtype = (int32_t)pick(TS_F32, TS_F16);
    auto floats = exactly<float>(dtype == TS_F32 ? extent : 0);
    auto halves = exactly<uint16_t>(dtype == TS_F32 ? 0 : extent);
    const double spread = trial % 3 ? 5 : 0.7;
    for (int64_t i = 0; i < extent; ++i) {
      float v = (float)real(-spread, spread);
      if (trial % 4 == 0) v = roundf(v);
      if (trial % 7 == 0 && pick(0, 9) == 0) v = special[pick(trial % 14 ? 2 : 0, 8)];
      if (dtype == TS_F32) floats[(size_t)i] = v;
      else halves[(size_t)i] = dtype == TS_BF16 ? ts_float_to_bf16(v) : (uint16_t)pick(0, 0x7bff);
    }
    const int64_t count = pick(0, 6);
    auto steps = exactly<ts_step>(count);
    std::vector<std::unique_ptr<double[]>> values;
    Lists lists;
    for (int64_t s = 0; s < count; ++s) {
      const int32_t op = (int32_t)pick(0, TS_OP_COUNT - 1);
      values.push_back(exactly<double>(batch));
      for (int64_t row = 0; row < batch; ++row)
        values.back()[(size_t)row] = value_of(op, vocab);
      ts_step &step = steps[(size_t)s];
      step.op = op;
      step.dtype = TS_F64;
      step.values = values.back().get();
      step.stride = 1;
      lists.add(&step, batch, vocab);
    }
    auto seed = exactly<int64_t>(batch), stream = exactly<int64_t>(batch), position = exactly<int64_t>(batch);
    auto history = exactly<int64_t>(batch * width), lengths = exactly<int64_t>(batch);
    for (int64_t row = 0; row < batch; ++row) {
      seed[(size_t)row] = (int64_t)generator();
      stream[(size_t)row] = (int64_t)generator();
      position[(size_t)row] = pick(0, 4000);
      lengths[(size_t)row] = pick(0, width);
    }
    for (int64_t i = 0; i < batch * width; ++i) history[(size_t)i] = pick(-1, vocab);
    ts_sample_args args = {};
    args.logits = dtype == TS_F32 ? (const void *)floats.get() : halves.get();
    args.batch = batch;
    args.vocab = vocab;
    args.row_stride = stride;
    args.dtype = dtype;
    args.greedy = trial % 6 == 0;
    args.steps = steps.get();
    args.step_count = count;
    args.seed = seed.get();
    args.stream = stream.get();
    args.position = position.get();
    args.draw = trial % 3;
    args.history = history.get();
    args.history_lengths = lengths.get();
    args.history_width = width;
    args.threads = (int32_t)pick(0, 3);
    Outputs expected(batch, vocab);
    expected.into(&args);
    expected.tops_into(&args);
    REQUIRE(ts_isa_set("scalar") == TS_OK);
    REQUIRE(ts_sample(&args) == TS_OK);
    for (const std::string &isa : instruction_sets()) {
      Outputs found(batch, vocab);
      found.into(&args);
      found.tops_into(&args);
      REQUIRE(ts_isa_set(isa.c_str()) == TS_OK);
      REQUIRE(ts_sample(&args) == TS_OK);
      REQUIRE(found.equals(expected, batch, vocab) && found.same_tops(expected, batch));
      compared += batch;
    }
#if defined(TS_CUDA_ON_CPU)
    Outputs found(batch, vocab);
    found.into(&args);
    found.tops_into(&args);
    auto workspace = exactly<uint8_t>(ts_cuda_sample_workspace(batch, vocab, width));
    args.workspace = workspace.get();
    on_threads += batch;
    REQUIRE(ts_cuda_sample(&args) == TS_OK);
    REQUIRE(found.equals(expected, batch, vocab) && found.same_tops(expected, batch));
#endif
  }
  printf("sampling: %lld rows equal over %s; %lld of the CUDA kernels on CPU threads\n", (long long)compared, ts_isa_available(),
         (long long)on_threads);
}

#if defined(__unix__)
// Rows that end where the next page must not be touched: not even code that no sanitizer sees may read past them.
void guarded_rows() {
  const int64_t page = sysconf(_SC_PAGESIZE), pages = 4;
  char *memory = (char *)mmap(nullptr, (size_t)((pages + 1) * page), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(memory != MAP_FAILED);
  REQUIRE(mprotect(memory + pages * page, (size_t)page, PROT_NONE) == 0);
  const double temperature = .7, k = 9, p = .8, one = 1;
  const int64_t first = 0;
  int32_t *words = nullptr;  // a mask that ends there, too
  const auto step = [](int32_t op, const double *value, const void *ids) {
    ts_step made = {};
    made.op = op;
    made.dtype = TS_F64;
    made.values = value;
    made.ids = ids;
    made.width = ids ? 1 : 0;
    return made;
  };
  ts_step chains[][2] = {{step(TS_TEMPERATURE, &temperature, nullptr), step(TS_TOP_K, &k, nullptr)},
                         {step(TS_TOP_P, &p, nullptr), step(TS_TEMPERATURE, &temperature, nullptr)},
                         {step(TS_BIAS, &one, &first), step(TS_MASK, &one, nullptr)}};
  char *second = (char *)mmap(nullptr, (size_t)(2 * page), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(second != MAP_FAILED && mprotect(second + page, (size_t)page, PROT_NONE) == 0);
  const int64_t key = 5;
  int rows = 0;
  for (const std::string &isa : instruction_sets()) {
    REQUIRE(ts_isa_set(isa.c_str()) == TS_OK);
    for (int32_t dtype = TS_F32; dtype <= TS_F16; ++dtype) {
      for (int64_t vocab = 1; vocab < 1100; vocab += vocab < 40 ? 1 : 97) {
        const int64_t size = vocab * (dtype == TS_F32 ? 4 : 2);
        char *row = memory + pages * page - size;
        for (int64_t i = 0; i < vocab; ++i) {
          if (dtype == TS_F32) ((float *)row)[i] = (float)real(-4, 4);
          else ((uint16_t *)row)[i] = dtype == TS_BF16 ? ts_float_to_bf16((float)real(-4, 4)) : (uint16_t)pick(0, 0x4400);
        }
        words = (int32_t *)(second + page) - (vocab + 31) / 32;
        for (int64_t w = 0; w < (vocab + 31) / 32; ++w) words[w] = -1;
        chains[2][1].ids = words;
        chains[2][1].width = (vocab + 31) / 32;
        for (const auto &chain : chains) {
          int64_t token = -1;
          uint8_t status = 9;
          float raw, processed;
          ts_sample_args args = {};
          args.logits = row;
          args.batch = 1;
          args.vocab = args.row_stride = vocab;
          args.dtype = dtype;
          args.steps = chain;
          args.step_count = 2;
          args.seed = args.stream = args.position = &key;
          args.token = &token;
          args.status = &status;
          args.logp_raw = &raw;
          args.logp_processed = &processed;
          REQUIRE(ts_sample(&args) == TS_OK && status == TS_ROW_OK && token >= 0 && token < vocab);
          ++rows;
        }
      }
    }
  }
  munmap(memory, (size_t)((pages + 1) * page));
  munmap(second, (size_t)(2 * page));
  printf("guard pages: %d rows read to their ends and no further\n", rows);
}
#else
void guarded_rows() {}
#endif

void refusals() {
  ts_sample_args sample = {};
  REQUIRE(ts_sample(nullptr) == TS_INVALID && ts_sample(&sample) == TS_INVALID);
  REQUIRE(strstr(ts_last_error(), "vocab"));
  const float logits[2] = {0, 1};
  uint8_t status = 9;
  int64_t token = 9;
  sample.logits = logits;
  sample.batch = 1;
  sample.vocab = sample.row_stride = 2;
  sample.status = &status;
  sample.token = &token;
  REQUIRE(ts_sample(&sample) == TS_INVALID && strstr(ts_last_error(), "seed"));
  sample.greedy = 1;
  const double bad[] = {0, -1, NAN, HUGE_VAL, 1e-60};
  for (const double value : bad) {
    ts_step step = {};
    step.op = TS_TEMPERATURE;
    step.dtype = TS_F64;
    step.values = &value;
    sample.steps = &step;
    sample.step_count = 1;
    REQUIRE(ts_sample(&sample) == TS_INVALID && strstr(ts_last_error(), "temperature"));
  }
  const struct {
    int32_t op;
    double value;
    const char *message;
  } lists[] = {{TS_BAN, .5, "0 or 1"}, {TS_BIAS, HUGE_VAL, "finite in float32"}, {TS_LENGTH_DECAY, -2, "at least -1"},
               {TS_TOP_P, .5, "names no tokens"}, {TS_BAN, 1, "takes no amounts"}, {TS_BIAS, 1, "amounts must be finite"},
               {TS_MASK, 1, "ids are missing"}, {TS_TOP_N_SIGMA, -1, "0 or more"}, {TS_XTC, .5, "the second parameter is missing"},
               {TS_EPSILON, 1.5, "0 to 1"}, {TS_OP_COUNT, 1, "unknown operation"}};
  const int64_t id = 1;
  const float amount = NAN;
  for (const auto &bad : lists) {
    ts_step step = {};
    step.op = bad.op;
    step.dtype = TS_F64;
    step.values = &bad.value;
    if (bad.op < TS_MASK) step.ids = &id, step.width = 1;
    if (strstr(bad.message, "amounts")) step.amounts = &amount;
    sample.steps = &step;
    sample.step_count = 1;
    REQUIRE(ts_sample(&sample) == TS_INVALID || ts_sample(&sample) == TS_UNSUPPORTED);
    REQUIRE(strstr(ts_last_error(), bad.message));
  }
  sample.step_count = 0;
  REQUIRE(ts_sample(&sample) == TS_OK && token == 1 && status == TS_ROW_OK);
  REQUIRE(ts_isa_set("abacus") == TS_UNSUPPORTED && strstr(ts_last_error(), "scalar"));
  std::string other = "unset";
  std::thread([&] { other = ts_last_error(); }).join();
  REQUIRE(other.empty());  // messages belong to the thread that failed
  puts("refusals: wrong arguments give codes and messages");
}

ts_step made_of(int32_t op, const double *value) {
  ts_step made = {};
  made.op = op;
  made.dtype = TS_F64;
  made.values = value;
  return made;
}

// A call for one row, outputs left out.
ts_sample_args one_row(const std::vector<float> &logits, const ts_step *steps, int64_t count, const int64_t *key) {
  ts_sample_args args = {};
  args.logits = logits.data();
  args.batch = 1;
  args.vocab = args.row_stride = (int64_t)logits.size();
  args.seed = args.stream = args.position = key;
  args.steps = steps;
  args.step_count = count;
  return args;
}

// A top-p that keeps all, other steps, and one that does not: what was learnt of the row for the first must not be used.
void later_top_p() {
  const int64_t vocab = 6000, key = 3;
  const double temperature = .8, one = 1, half = .5, p = .9;
  const int64_t banned[] = {1, 2, 3, 4, 5};
  std::vector<int32_t> words((size_t)(vocab + 31) / 32, -1);
  for (int trial = 0; trial < 48; ++trial) {
    std::vector<float> logits((size_t)vocab);
    for (float &v : logits) v = (float)(real(-9, 9) + real(-9, 9));
    for (int32_t &word : words) word = (int32_t)generator();
    for (const int64_t id : banned) logits[(size_t)id] = 20;
    std::vector<ts_step> steps = {made_of(TS_TOP_P, &one)};
    if (trial % 2) steps.insert(steps.begin(), made_of(TS_TEMPERATURE, &temperature));
    if (trial % 3 == 0) steps.push_back(made_of(TS_TEMPERATURE, &half));
    if (trial % 3 == 1) {
      steps.push_back(made_of(TS_MASK, &one));
      steps.back().ids = words.data();
      steps.back().width = (int64_t)words.size();
    }
    if (trial % 3 == 2) {
      steps.push_back(made_of(TS_BAN, &one));
      steps.back().ids = banned;
      steps.back().width = 5;
    }
    steps.push_back(made_of(TS_TOP_P, &p));
    Outputs expected(1, vocab);
    ts_sample_args args = one_row(logits, steps.data(), (int64_t)steps.size(), &key);
    const auto draw = [&](const std::string &isa, Outputs *into) {
      into->into(&args);
      args.logp_raw = args.logp_processed = nullptr;
      REQUIRE(ts_isa_set(isa.c_str()) == TS_OK && ts_sample(&args) == TS_OK);
    };
    draw("scalar", &expected);
    for (const std::string &isa : instruction_sets()) {
      Outputs found(1, vocab);
      draw(isa, &found);
      REQUIRE(found.equals(expected, 1, vocab));
    }
  }
  puts("later top-p: one that follows others than the first is the same everywhere");
}

// Finite values that a temperature makes infinite, as masked tokens are: nothing is written behind the row, and every
// instruction set gives the same.
void overflowing_masks() {
  const int64_t key = 5;
  const double half = .5, twenty = 20, bits = 30, pair = 1;
  for (const int64_t vocab : {257, 300, 5000}) {
    std::vector<float> logits((size_t)vocab, -FLT_MAX);
    for (int i = 0; i < 10; ++i) logits[(size_t)(7 + i)] = (float)i;
    for (const int32_t op : {TS_TOP_K, TS_TOP_K_LOW, TS_MIROSTAT, TS_TOP_P}) {
      ts_step steps[2] = {made_of(TS_TEMPERATURE, &half), made_of(op, op == TS_TOP_P ? &half : op == TS_MIROSTAT ? &bits : &twenty)};
      if (op == TS_MIROSTAT) steps[1].second = &pair;
      Outputs expected(1, vocab);
      ts_sample_args args = one_row(logits, steps, 2, &key);
      const auto draw = [&](const std::string &isa, Outputs *into) {
        into->into(&args);
        into->tops_into(&args);
        REQUIRE(ts_isa_set(isa.c_str()) == TS_OK && ts_sample(&args) == TS_OK && into->status[0] == TS_ROW_OK);
      };
      draw("scalar", &expected);
      for (const std::string &isa : instruction_sets()) {
        Outputs found(1, vocab);
        draw(isa, &found);
        REQUIRE(found.equals(expected, 1, vocab) && found.same_tops(expected, 1));
        for (int64_t i = 0; i < vocab; ++i) REQUIRE(logits[(size_t)i] > -FLT_MAX || found.logits[i] == -HUGE_VALF);
      }
    }
  }
  puts("overflowing masks: nothing behind the row");
}

void threads() {
  const int64_t vocab = 5000;
  std::vector<float> logits((size_t)vocab);
  for (float &v : logits) v = (float)real(-3, 3);
  const double p = .9;
  ts_step step = {};
  step.op = TS_TOP_P;
  step.dtype = TS_F64;
  step.values = &p;
  std::vector<int64_t> tokens[8];
  std::vector<std::thread> pool;
  for (auto &mine : tokens) {
    pool.emplace_back([&] {
      for (int64_t position = 0; position < 20; ++position) {
        const int64_t seed = 3, stream = 4;
        int64_t token = -1;
        uint8_t status;
        ts_sample_args args = {};
        args.logits = logits.data();
        args.batch = 1;
        args.vocab = args.row_stride = vocab;
        args.steps = &step;
        args.step_count = 1;
        args.seed = &seed;
        args.stream = &stream;
        args.position = &position;
        args.token = &token;
        args.status = &status;
        if (ts_sample(&args) == TS_OK) mine.push_back(token);
      }
    });
  }
  for (std::thread &thread : pool) thread.join();
  REQUIRE(tokens[0].size() == 20);
  for (const auto &mine : tokens) REQUIRE(mine == tokens[0]);
  puts("threads: eight at once draw the same tokens");
}

// A batch large enough to be shared, by several callers at once.
void shared_rows() {
  const int64_t batch = 12, vocab = 40000;
  std::vector<float> logits((size_t)(batch * vocab));
  for (float &v : logits) v = (float)real(-3, 3);
  std::vector<int64_t> key((size_t)batch);
  for (int64_t row = 0; row < batch; ++row) key[(size_t)row] = row;
  const double p = .9;
  ts_step step = {};
  step.op = TS_TOP_P;
  step.dtype = TS_F64;
  step.values = &p;
  const auto draw = [&](int32_t threads) {
    std::vector<int64_t> token((size_t)batch);
    std::vector<uint8_t> status((size_t)batch);
    ts_sample_args args = {};
    args.logits = logits.data();
    args.batch = batch;
    args.vocab = args.row_stride = vocab;
    args.steps = &step;
    args.step_count = 1;
    args.seed = args.stream = args.position = key.data();
    args.token = token.data();
    args.status = status.data();
    args.threads = threads;
    if (ts_sample(&args) != TS_OK) token.clear();
    return token;
  };
  const std::vector<int64_t> expected = draw(1);
  REQUIRE(expected.size() == (size_t)batch);
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&, caller] {
      for (int32_t threads = 1 + caller; threads < 5; ++threads) wrong += draw(threads) != expected;
    });
  }
  for (std::thread &caller : callers) caller.join();
  REQUIRE(wrong == 0);
  puts("shared rows: one to four threads draw the same tokens, three callers at once");
}

// Sums in one pass are those of two, and the estimate is as near to the weights as ChainRow::doubt_of says.
void sums_of_rows() {
  int64_t estimates = 0, flat = 0, shallow = 0, kinds = 0;
  for (const std::string &isa : instruction_sets()) {
    REQUIRE(ts_isa_set(isa.c_str()) == TS_OK);
    const TsSampling *kernels = ts_sampling();
    for (int trial = 0; trial < 60; ++trial) {
      const int64_t n = trial % 5 ? pick(1, 6000) : pick(2049, 6000), blocks = (n + kBlock - 1) / kBlock;
      const int bits = ts_weight_bits(n);
      const double spread = trial % 5 ? real(.1, 5) : .3, shift = real(-40, 40);
      auto x = exactly<float>(n);
      for (int64_t i = 0; i < n; ++i) x[i] = (float)(spread * (real(-3, 3) + real(-3, 3)) + shift);
      auto marks = exactly<uint16_t>(blocks * kBlockGroups);
      auto flagged = exactly<uint8_t>(blocks);
      for (int64_t j = trial % 2 ? pick(0, 9) : 0; j > 0; --j) {
        const int64_t id = pick(0, n - 1);
        marks[id / kLanes] = (uint16_t)(marks[id / kLanes] | 1u << id % kLanes);
        flagged[id / kBlock] = 1;
      }
      const float divisor = (float)real(.2, 3);
      const TsRow row = {x.get(), n, trial % 2 ? marks.get() : nullptr, flagged.get(), &divisor, trial % 3 ? 1 : 0, TS_F32,
                         trial % 7 < 3, trial % 4 ? nullptr : x.get()};
      float top = x[0];
      for (int64_t i = 0; i < n; ++i) top = x[i] > top ? x[i] : top;
      const float max = row.divisor_count ? top / divisor : top, from = top - (float)real(0, 4 * spread);
      const float lowest = from - (float)real(0, spread);
      auto one = exactly<uint64_t>(blocks), two = exactly<uint64_t>(blocks);
      auto between = exactly<float>(n + kLanes), lanes = exactly<float>(blocks * kLanes), listed = exactly<float>(n + kLanes);
      auto ends = exactly<int64_t>(blocks);
      auto ids = exactly<int32_t>(n + kLanes);
      uint64_t all = 0;
      const uint64_t above = kernels->split(&row, max, bits, lowest, from, one.get(), between.get(), ends.get(), &all);
      uint8_t has_nan = 0;
      const float largest = kernels->scan[row.dtype](&row, lanes.get(), &has_nan);
      {
        TsRow other = row;  // read in another order
        other.in_line = !row.in_line;
        auto again = exactly<float>(blocks * kLanes);
        REQUIRE(kernels->scan[row.dtype](&other, again.get(), &has_nan) == largest && same(again.get(), lanes.get(), blocks * kLanes));
      }
      const int64_t found = kernels->collect[row.dtype](&row, lanes.get(), lowest, from, ids.get(), listed.get());
      REQUIRE(ends[blocks - 1] == found && same(between.get(), listed.get(), found));
      for (int64_t b = 0, at = 0; b < blocks; ++b) {
        while (at < found && ids[at] < (b + 1) * kBlock) ++at;
        REQUIRE(ends[b] == at);
      }
      REQUIRE(above == kernels->mass(&row, max, bits, from, two.get()) && same(one.get(), two.get(), blocks));
      REQUIRE(all == kernels->mass(&row, max, bits, -HUGE_VALF, nullptr));
      REQUIRE(all == ts_sampling_scalar.mass(&row, max, bits, -HUGE_VALF, nullptr));
      if (kernels->shallow && ts_exp((row.divisor_count ? lowest / divisor : lowest) - max) > 1.001f * 0x1p23f / (1 << kFraction)) {
        auto z = exactly<float>(n + kLanes);
        auto w = exactly<uint64_t>(n + kLanes);
        TsShallow sums = {two.get(), z.get(), w.get(), ends.get(), 0, 0, 0};
        for (int64_t b = 0; b < blocks; ++b) two[b] = (uint64_t)(ends[b] = -1);
        if (kernels->shallow(&row, max, bits, lowest, from, &sums)) {
          REQUIRE(sums.above == above && same(one.get(), two.get(), blocks) && ends[blocks - 1] == found);
          for (int64_t b = 0, at = 0; b < blocks; ++b) {
            while (at < found && ids[at] < (b + 1) * kBlock) ++at;
            REQUIRE(ends[b] == at);
          }
          for (int64_t i = 0; i < found; ++i) {
            REQUIRE(z[i] == (row.divisor_count ? listed[i] / divisor : listed[i]));
            REQUIRE(w[i] == ts_weight(ts_exp(z[i] - max), ldexp(1.0, bits)));
          }
          const uint64_t others = all - above;
          REQUIRE((others > sums.near ? others - sums.near : sums.near - others) <= sums.error);
          ++shallow;
        }
      }
      if (!kernels->rough) continue;
      if (!row.marks) {
        auto again = exactly<float>(blocks * kLanes);
        double estimate = -1;
        const float most = kernels->scan_rough[row.dtype](&row, again.get(), &has_nan, &estimate, false);
        REQUIRE(most == top && !has_nan && same(again.get(), lanes.get(), blocks * kLanes));
        flat += estimate < 0;
        if (estimate >= 0) {
          const double exact = ldexp((double)(int64_t)all, -bits), deep = log((double)n / fmax(estimate, 1e-9));
          REQUIRE(fabs(estimate - exact) <= estimate * (0x1p-24 * (fabs((double)max) + 3 * deep) + 8e-7) + (double)n * 0x1p-44);
          ++estimates;
        }
      }
      const double scale = ldexp(1.0, bits), mass = (double)(int64_t)(all - above) / scale;
      const double estimate = kernels->rough(&row, max, from), deep = log((double)n / fmax(estimate, 1e-9));
      const double error = estimate * (0x1p-24 * (fabs((double)max) + 3 * deep) + 8e-7) + (double)n * 0x1p-44;
      REQUIRE(fabs(estimate - mass) <= error);
      ++estimates;
    }
  }
  // Where sums of 32 bits overflow that is said; divisors whose quotients take the long way round are refused.
  for (const std::string &isa : instruction_sets()) {
    REQUIRE(ts_isa_set(isa.c_str()) == TS_OK);
    const TsSampling *kernels = ts_sampling();
    if (!kernels->shallow) continue;
    ++kinds;
    float x[300], z[300 + kLanes];
    uint64_t blocks[2], w[300 + kLanes];
    int64_t ends[2];
    TsShallow sums = {blocks, z, w, ends, 0, 0, 0};
    for (int equal = 0; equal < 300; ++equal) {  // all but one of a lane's tokens, or all
      for (int i = 0; i < 300; ++i) x[i] = i < equal ? 1.0f : 0.5f;
      const TsRow row = {x, 300, nullptr, nullptr, nullptr, 0, TS_F32};
      uint64_t one[2];
      const uint64_t above = kernels->mass(&row, 1, 44, .75f, one);
      const bool fits = kernels->shallow(&row, 1, 44, .75f, .75f, &sums);
      REQUIRE(fits == (equal < 113));
      REQUIRE(!fits || (sums.above == above && same(blocks, one, 2)));
    }
    for (const float divisor : {.96f, .48f, .8f, .7f, 1.3f}) {
      const TsRow row = {x, 300, nullptr, nullptr, &divisor, 1, TS_F32};
      x[299] = 2;
      REQUIRE(kernels->shallow(&row, 2 / divisor, 44, 2, 2, &sums) == (divisor != .96f && divisor != .48f));
    }
  }
  REQUIRE(!kinds || shallow);
  // Quotients to the last bit, of whatever size: most weights of these rows change with it.
  for (const std::string &isa : instruction_sets()) {
    REQUIRE(ts_isa_set(isa.c_str()) == TS_OK);
    for (int trial = 0; trial < 400; ++trial) {
      float x[256];
      const double size = exp(real(-75, trial % 9 ? 0 : 80));
      for (float &v : x) v = (float)(size * real(-9, 9) * (pick(0, 7) ? 1 : exp(real(-60, 0))));
      if (trial % 5 == 0) x[pick(1, 255)] = trial % 10 ? -HUGE_VALF : -3e38f;
      const float divisor = (float)(trial % 3 ? real(.05, 3) : exp(real(-20, 20)));
      const TsRow row = {x, 256, nullptr, nullptr, &divisor, 1, TS_F32};
      float max = -HUGE_VALF;
      for (const float v : x) max = v / divisor > max ? v / divisor : max;
      if (max == HUGE_VALF) continue;
      uint64_t block, expected;
      ts_sampling()->mass(&row, max, 44, -HUGE_VALF, &block);
      ts_sampling_scalar.mass(&row, max, 44, -HUGE_VALF, &expected);
      REQUIRE(block == expected);
    }
  }
  REQUIRE(!estimates || (flat && flat < estimates));
  printf("sums of rows: one pass is two, and %lld times a shallow one; %lld estimates within their bound, %lld rows too flat for one\n",
         (long long)shallow, (long long)estimates, (long long)flat);
}

// What a flat row is drawn by: exp, powers, sums and weights are no further off than is said, whatever is far below the others.
int64_t flat_estimates(const TsFlatLoops &flat) {
  int64_t apart = 0;
  for (int trial = 0; trial < 120; ++trial) {
    const int64_t n = pick(1, 5000), blocks = (n + kBlock - 1) / kBlock, room = n + 2 * kLanes;
    const float divisor = trial % 6 == 3 ? 1.0f : (float)real(.3, 3);
    // Of x as it is, of x less an offset, and of quotients less an offset.
    const bool shifted = trial % 3 != 0, divided = trial % 3 == 2 && flat.divides(divisor);
    const double spread = real(.1, 2), shift = shifted ? real(-150, 150) : real(-8, 8), unit = divided ? 1 : (double)divisor;
    TsPowers how = {(float)(1 / (unit * kLn2)), shifted ? rintf((float)(shift / (divided ? divisor : 1))) : 0, divided ? divisor : 0, 0};
    how.lowest = (float)((how.offset - 1000 / (double)how.slope) * (divided ? divisor : 1));
    const float removed = trial % 4 == 0 ? -HUGE_VALF : trial % 4 == 1 ? -FLT_MAX : trial % 4 == 2 ? -1e30f : -1e9f;
    auto x = exactly<float>(n);
    for (int64_t i = 0; i < n; ++i) x[i] = pick(0, trial % 5 ? 99 : 999) ? (float)(shift + spread * (real(-1, 1) + real(-1, 1))) : removed;
    const float top = *std::max_element(x.get(), x.get() + n);
    if (top == removed) continue;
    apart += how.offset != 0;
    const float from = (float)(shift - real(0, spread)), below = from + (float)real(0, spread), max = top / divisor;
    const TsRow row = {x.get(), n, nullptr, nullptr, nullptr, 0, TS_F32, trial % 2 == 0};
    auto sums = exactly<double>(2 * blocks);
    auto spans = exactly<int32_t>(2 * blocks);
    auto listed = exactly<float>(room), u = exactly<float>(room), every = exactly<float>(blocks * kBlock), powers = exactly<float>(blocks * kBlock);
    TsFlat found = {sums.get(), spans.get(), listed.get(), 0, 0, 0, 0, HUGE_VAL};
    REQUIRE(flat.pass(&row, &how, from, below, &found));
    std::fill(std::copy_n(x.get(), n, every.get()), every.get() + blocks * kBlock, -HUGE_VALF);
    flat.powers(every.get(), blocks * kBlock, &how, powers.get());
    const double slope = (double)how.slope * unit * kLn2, steep = fabs(slope - 1), offset = how.offset / unit, centre = (double)top / divisor;
    double whole = 0, rest = 0;
    int64_t count = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      double all = 0, under = 0;
      std::vector<float> between;
      for (int64_t i = b * kBlock; i < std::min(n, (b + 1) * kBlock); ++i) {
        if (x[i] >= from && x[i] < below) between.push_back(x[i]);
        if (x[i] == removed) {
          REQUIRE(powers[i] == 0);
          continue;
        }
        const float z = x[i] / divisor, argument = (divided ? z : x[i]) - how.offset;
        const double exact = exp2((double)argument * (double)how.slope);
        all += exact;
        if (x[i] < below) under += exact;
        REQUIRE(fabs((double)powers[i] / exact - 1) <= kPowerError + kHalf && powers[i] <= found.most);
        // ... and the weight is as far from the power as chain_flat.cpp says
        const float d = z - max;
        const auto step = [](double v) { return v > 0 ? kHalf * exp2(floor(log2(v))) : 0; };
        const bool same_sign = z * max > 0 && fabs((double)z - (double)max) <= std::min(fabs((double)z), fabs((double)max));
        const double from_top = (double)max - (double)z, apart_by = fabs((divided ? (double)z : (double)x[i]) - how.offset);
        const bool exact_offset = how.offset == 0 || apart_by <= fabs(divided ? (double)z : (double)x[i]);
        if (d < -24) continue;
        const double off = log((double)ts_exp(d)) + (double)max - log((double)powers[i]) - offset + (slope - 1) * (centre - offset);
        const double bound = steep * from_top * (1 + 1e-6) + (same_sign ? 0 : step(from_top)) + (divided || divisor == 1 ? 0 : step(fabs((double)z))) +
                             (exact_offset ? 0 : step(apart_by) / unit) + kExpError + kPowerError + kHalf + 1e-10;
        REQUIRE(fabs(off) <= bound);
      }
      REQUIRE(fabs(sums[2 * b] - all) <= all * (kPowerError + kSumError) && fabs(sums[2 * b + 1] - under) <= under * (kPowerError + kSumError));
      std::vector<float> others(listed.get() + spans[2 * b], listed.get() + spans[2 * b + 1]);
      std::sort(between.begin(), between.end());
      std::sort(others.begin(), others.end());
      REQUIRE(between == others);
      whole += sums[2 * b];
      rest += sums[2 * b + 1];
      count += (int64_t)others.size();
    }
    REQUIRE(count == found.listed && fabs(whole - found.whole) <= 1e-12 * whole && fabs(rest - found.rest) <= 1e-12 * whole);
    const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
    std::fill(listed.get() + count, listed.get() + padded, HUGE_VALF);
    const double sum = flat.powers(listed.get(), padded, &how, u.get()), pivot = real(from, below);
    const TsUnder under = flat.under(listed.get(), u.get(), padded, (float)pivot);
    double expected = 0, total = 0;
    int64_t fewer = 0;
    float prior = -HUGE_VALF, next = HUGE_VALF;
    for (int64_t i = 0; i < count; ++i) {
      total += u[i];
      if (listed[i] < (float)pivot) expected += u[i], ++fewer, prior = std::max(prior, listed[i]);
      else next = std::min(next, listed[i]);
    }
    REQUIRE(fabs(total - sum) <= 1e-12 * total && fabs(expected - under.sum) <= 1e-12 * total);
    REQUIRE(under.count == fewer && under.prior == prior && under.next == next);
    auto some = exactly<float>(room), some_u = exactly<float>(room);
    REQUIRE(flat.pick(listed.get(), u.get(), padded, (float)pivot, below, some.get(), some_u.get()) == count - fewer);
    found.enough = whole * .99;
    REQUIRE(!flat.pass(&row, &how, from, below, &found));  // it leaves early
    found.enough = HUGE_VAL;
    x[pick(0, n - 1)] = trial % 2 ? NAN : HUGE_VALF;
    REQUIRE(!flat.pass(&row, &how, from, below, &found));
  }
  return apart;
}

uint16_t half_of(float v) {  // towards 0
  if (v == -HUGE_VALF) return 0xfc00;
  const uint32_t bits = float_to_bits(v), sign = bits >> 16 & 0x8000, exponent = bits >> 23 & 255;
  if (exponent > 142) return (uint16_t)(sign | 0x7bff);
  return (uint16_t)(exponent < 113 ? sign : sign | (exponent - 112) << 10 | (bits >> 13 & 1023));
}

// Draws from one row by every instruction set, and with a log-probability, for which no estimate is taken: whether all agree.
bool drawn_alike(ts_sample_args args, int64_t *drawn) {
  bool first = true;
  for (const std::string &isa : instruction_sets()) {
    REQUIRE(ts_isa_set(isa.c_str()) == TS_OK);
    for (const bool more : {false, true}) {
      int64_t token = -1;
      uint8_t status = 9;
      float logp;
      args.token = &token, args.status = &status, args.threads = 1;
      args.logp_truncated = more ? &logp : nullptr;
      REQUIRE(ts_sample(&args) == TS_OK && status == TS_ROW_OK);
      if (first) *drawn = token;
      if (token != *drawn) return false;
      first = false;
    }
  }
  return true;
}

// Every instruction set draws the same tokens of flat rows: with many equal values, far from 0, with tokens at -inf or at what
// masks set instead, hardly flat ones and others too.
void flat_rows() {
  for (uint32_t bits = float_to_bits(-0x1p-30f); bits <= float_to_bits(-24.0f); bits += 101) {
    const float d = bits_to_float(bits);
    REQUIRE(fabs((double)ts_exp(d) / exp((double)d) - 1) <= kExpError);
  }
  int64_t loops = 0;
  for (const std::string &isa : instruction_sets()) {
    REQUIRE(ts_isa_set(isa.c_str()) == TS_OK);
    if (!ts_sampling()->flat) continue;
    ++loops;
    REQUIRE(flat_estimates(*ts_sampling()->flat) > 0);
  }
  const std::vector<float> removed = {-HUGE_VALF, -FLT_MAX, -3e38f, -1e30f, -1e9f, -1e4f};
  for (int trial = 0; trial < 300; ++trial) {
    const int32_t dtype = trial % 3 == 0 ? TS_F32 : trial % 3 == 1 ? TS_BF16 : TS_F16;
    const int64_t n = trial % 20 ? pick(2049, 12000) : pick(100000, 150000), batch = trial % 20 ? 8 : 4;
    auto x = exactly<float>(batch * n);
    auto halves = exactly<uint16_t>(batch * n);
    const double spread = real(.02, .8), shift = trial % 4 ? 0 : trial % 8 ? real(-130, 130) : real(-40, 40);
    const bool ties = trial % 9 == 0 && dtype == TS_F32, rounds = trial % 7 == 0, masks = trial % 11 == 0 || trial % 16 == 0;
    const float mask = removed[(size_t)pick(0, (int64_t)removed.size() - 1)];
    const int64_t often = pick(0, 2);  // one token in 2, 10 or 2000
    for (int64_t i = 0; i < batch * n; ++i) {
      float v = (float)(shift + spread * (real(-1, 1) + real(-1, 1) + real(-1, 1)));
      if (rounds) v = rintf(v * 8) / 8;
      if (ties) v = pick(0, 2) ? (float)real(1.4, 2.4) : 1.9f + (float)pick(0, 3) * 0x1p-23f;  // of which the division makes some equal
      if (trial % 13 == 0 && i % n < 2048) v = v - (float)(2 * spread);  // the first are not like the others
      if (trial % 17 == 0 && i % n == n * 3 / 4) v = v + 20;  // not flat at all
      if (masks && pick(0, often == 0 ? 1 : often == 1 ? 9 : 1999) == 0) v = mask;
      if (dtype == TS_F16) {
        halves[i] = half_of(v);
        v = ts_f16_to_float(halves[i]);
      } else if (dtype == TS_BF16) {
        halves[i] = ts_float_to_bf16(v);
        v = ts_bf16_to_float(halves[i]);
      }
      x[i] = v;
    }
    double temperature = ties ? .86 : trial % 5 == 1 ? .8 : real(.3, 3), p = ties ? real(.5, .65) : real(.2, .98);
    ts_step steps[2] = {made_of(TS_TEMPERATURE, &temperature), made_of(TS_TOP_P, &p)};
    const int64_t first = !ties && trial % 5 == 0;  // without a temperature
    for (int64_t row = 0; row < batch; ++row) {
      const int64_t seed = pick(0, 1 << 30);
      ts_sample_args args = {};
      args.logits = dtype == TS_F32 ? (const void *)(x.get() + row * n) : (const void *)(halves.get() + row * n);
      args.batch = 1, args.vocab = args.row_stride = n, args.dtype = dtype;
      args.steps = steps + first, args.step_count = 2 - first;
      args.seed = args.stream = args.position = &seed;
      int64_t token;
      REQUIRE(drawn_alike(args, &token));
    }
  }
  // Draws that fall next to where one token's share ends and the next one's begins, and limits of top-p next to where one token
  // goes or stays: there no estimate decides.
  constexpr int64_t kTokens = 60000;
  int64_t near = 0, borders = 0, turns = 0;
  for (int trial = 0; trial < 10; ++trial) {
    auto x = exactly<float>(kTokens);
    const double shift = trial % 3 == 1 ? real(-120, -20) : trial % 3 == 2 ? 50 : 0;
    for (int64_t i = 0; i < kTokens; ++i) {
      x[i] = (float)(shift + real(-1, 1) + real(-1, 1));
      if (trial % 4 > 1) x[i] = rintf(x[i] * 8192) / 8192;  // two of a kind
    }
    double p = .9, temperature = trial % 2 ? .8 : 1;
    const ts_step steps[2] = {made_of(TS_TEMPERATURE, &temperature), made_of(TS_TOP_P, &p)};
    std::vector<float> out((size_t)kTokens);
    const int64_t none = 0;
    int64_t token = -1, seed = 0;
    uint8_t status = 9;
    ts_sample_args args = {};
    args.logits = x.get(), args.batch = 1, args.vocab = kTokens, args.row_stride = kTokens, args.dtype = TS_F32;
    args.steps = steps, args.step_count = 2, args.seed = &seed, args.stream = &none, args.position = &none;
    args.token = &token, args.status = &status, args.out_logits = out.data(), args.threads = 1;
    REQUIRE(ts_sample(&args) == TS_OK);
    args.out_logits = nullptr;
    const float max = *std::max_element(out.begin(), out.end());
    std::vector<uint64_t> sums((size_t)kTokens);
    uint64_t total = 0;
    for (size_t i = 0; i < out.size(); ++i) sums[i] = total += out[i] > -HUGE_VALF ? ts_weight(ts_exp(out[i] - max), 0x1p44) : 0;
    const int64_t wanted = near + 12;
    for (seed = 0; near < wanted; ++seed) {
      const uint64_t target = ts_mulhi(ts_uniform_bits(seed, 0, 0, 0), total);
      const auto after = std::upper_bound(sums.begin(), sums.end(), target);
      const uint64_t gap = std::min(*after - target, after == sums.begin() ? total : target - after[-1]);
      if ((double)(int64_t)gap > 1e-9 * (double)(int64_t)total) continue;
      ++near;
      REQUIRE(drawn_alike(args, &token) && token == after - sums.begin());
    }
    std::vector<std::pair<float, uint64_t>> ascending;
    uint64_t all = 0;
    for (int64_t i = 0; i < kTokens; ++i) {
      const float z = x[i] / (float)temperature;
      ascending.push_back({z, ts_weight(ts_exp(z - max), 0x1p44)});
      all += ascending.back().second;
    }
    std::sort(ascending.begin(), ascending.end());
    uint64_t gone = 0;
    for (size_t i = 0; i < ascending.size() / 2; ++i) {
      gone += ascending[i].second;
      if (i < 4000 || i % 997) continue;
      int64_t tokens[2];
      for (int side = 0; side < 2; ++side) {  // the limit is a millionth of a token above or below: it goes or stays
        p = 1 - ((double)(int64_t)gone + (side ? 1e-6 : -1e-6) * (double)(int64_t)ascending[i].second) / (double)(int64_t)all;
        seed = (int64_t)i;
        REQUIRE(drawn_alike(args, &tokens[side]));
      }
      ++borders;
      turns += tokens[0] != tokens[1];
    }
  }
  REQUIRE(turns > borders / 50);  // draws that a wrong guess would spoil
  printf("flat rows: estimates of %lld versions within their bounds, and the same tokens of rows in float32, bfloat16 and float16; %lld limits next "
         "to a token, whose fate changes %lld draws\n",
         (long long)loops, (long long)borders, (long long)turns);
}

// top-p of flat rows whose boundary lies among numbers so near to 0 that parts of a quotient get lost.
void tiny_values() {
  int64_t kept = 0;
  for (int trial = 0; trial < 60; ++trial) {
    const int64_t n = 40000;
    auto x = exactly<float>(n);
    double over = 0, all = 0, near = 0;
    const double heat = trial % 2 ? 1.3 : .7;
    for (int64_t i = 0; i < n; ++i) {
      const bool tiny = pick(0, 15) == 0;
      x[i] = (float)(tiny ? ldexp(real(1, 8), -125) * (pick(0, 1) ? 1 : -1) : real(-1, 1));
      const double e = exp(x[i] / heat);
      all += e;
      if (tiny) near += e;
      else if (x[i] > 0) over += e;
    }
    double p = (over + near * real(.1, .9)) / all, temperature = heat;
    ts_step steps[2] = {};
    steps[0].op = TS_TEMPERATURE, steps[1].op = TS_TOP_P;
    steps[0].dtype = steps[1].dtype = TS_F64;
    steps[0].values = &temperature, steps[1].values = &p;
    std::vector<float> first;
    for (const std::string &isa : instruction_sets()) {
      REQUIRE(ts_isa_set(isa.c_str()) == TS_OK);
      std::vector<float> out((size_t)n);
      uint8_t status = 9;
      int64_t token = -1, seed = trial, none = 0;
      ts_sample_args args = {};
      args.logits = x.get(), args.batch = 1, args.vocab = n, args.row_stride = n, args.dtype = TS_F32;
      args.steps = steps, args.step_count = 2, args.seed = &seed, args.stream = &none, args.position = &none;
      args.token = &token, args.status = &status, args.out_logits = out.data(), args.threads = 1;
      REQUIRE(ts_sample(&args) == TS_OK && status == TS_ROW_OK && out[(size_t)token] > -HUGE_VALF);
      if (first.empty()) first = out;
      REQUIRE(out == first);
    }
    kept += std::count_if(first.begin(), first.end(), [](float z) { return fabsf(z) < 1e-30f; });
  }
  REQUIRE(kept > 0);
  puts("tiny values: what top-p keeps among them is the same everywhere");
}

// The k-th largest is what a sort finds, with many equals too, and nothing is read or written beyond the room.
void selections() {
  const auto descending = [](float a, float b) { return a > b; };
  for (const std::string &isa : instruction_sets()) {
    REQUIRE(ts_isa_set(isa.c_str()) == TS_OK);
    const TsSampling *kernels = ts_sampling();
    for (int trial = 0; trial < 600; ++trial) {
      const int64_t n = trial % 3 ? pick(1, 80) : pick(1, 4000), k = trial % 2 ? pick(1, n) : pick(1, std::min<int64_t>(n, 60));
      const int64_t kinds = trial % 4 ? 1000000 : pick(1, 6);
      auto x = exactly<float>(n), room = exactly<float>(2 * n + 2 * kLanes);
      for (int64_t i = 0; i < n; ++i) x[i] = pick(0, 19) ? (float)pick(-kinds, kinds) * .25f : -HUGE_VALF;
      if (trial % 5 == 0) std::sort(x.get(), x.get() + n, descending);
      std::vector<float> sorted(x.get(), x.get() + n);
      std::sort(sorted.begin(), sorted.end(), descending);
      REQUIRE(kernels->kth(x.get(), n, k, room.get()) == sorted[(size_t)k - 1]);
      if (n <= 2 * kLanes) REQUIRE(kernels->kth_of_few(x.get(), n, k) == sorted[(size_t)k - 1]);

      const int64_t count = (n + kLanes - 1) / kLanes * kLanes, wanted = std::min(k, count);
      auto lanes = exactly<float>(count), more = exactly<float>(3 * count + 2 * kLanes);
      for (int64_t i = 0; i < count; ++i) lanes[i] = (float)pick(-kinds, kinds);
      std::vector<float> whole(lanes.get(), lanes.get() + count);
      std::sort(whole.begin(), whole.end(), descending);
      const float reached = kernels->kth_of_lanes(lanes.get(), count, wanted, more.get());
      REQUIRE(reached <= whole[(size_t)wanted - 1] && std::count(whole.begin(), whole.end(), reached) > 0);
      const auto many = std::count_if(whole.begin(), whole.end(), [&](float v) { return v >= reached; });
      REQUIRE(kinds < 1000000 || many <= 40 * wanted + 40);  // of values without order not much less
    }
  }
  puts("selections: the k-th largest is that of a sort");
}

// A list of which next to nothing falls away each time that kth parts it: what it judges by, 16 values at even distances, are
// always the smallest that are left, or the largest; which of them is the pivot follows from k and n.
std::vector<float> stubborn(int64_t n, bool largest_first) {
  std::vector<float> x((size_t)n);
  std::vector<int64_t> left((size_t)n);
  for (int64_t i = 0; i < n; ++i) left[(size_t)i] = i;
  for (float next = 1; !left.empty();) {
    std::vector<int64_t> stays;
    const int64_t size = (int64_t)left.size();
    for (int64_t i = 0, j = 0; i < size; ++i) {
      while (j < kLanes && size * (2 * j + 1) / (2 * kLanes) < i) ++j;
      const bool judged = size <= kLanes || (j < kLanes && size * (2 * j + 1) / (2 * kLanes) == i);
      if (judged) x[(size_t)left[(size_t)i]] = largest_first ? (float)n - next++ : next++;
      else stays.push_back(left[(size_t)i]);
    }
    left = stays;
  }
  return x;
}

// However a list is made, kth looks at no value more than some 40 times; at few of an ordinary one more than 8 times.
void bounded_selections() {
  int64_t worst = 0, ordinary = 0;
  const auto looked = [](const std::vector<float> &x, int64_t k) {
    const int64_t n = (int64_t)x.size();
    auto room = exactly<float>(2 * n + 2 * kLanes);
    std::vector<float> sorted(x);
    std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), [](float a, float b) { return a > b; });
    int64_t looks;
    REQUIRE(watched_kth(x.data(), n, k, room.get(), &looks) == sorted[(size_t)k - 1]);
    REQUIRE(watched_bits(x.data(), n, k) == sorted[(size_t)k - 1]);
    for (const std::string &isa : instruction_sets()) {
      REQUIRE(ts_isa_set(isa.c_str()) == TS_OK);
      REQUIRE(ts_sampling()->kth(x.data(), n, k, room.get()) == sorted[(size_t)k - 1]);
    }
    return looks;
  };
  for (const int64_t n : {int64_t(33), int64_t(500), int64_t(4001), int64_t(20000)}) {
    for (const bool largest_first : {false, true}) {
      const std::vector<float> x = stubborn(n, largest_first);
      for (const int64_t k : {int64_t(1), int64_t(2), n / 16, n / 3, n / 2, n - n / 3, n - 1, n}) {
        const int64_t looks = looked(x, k);
        REQUIRE(looks <= 40 * n);
        worst = std::max(worst, looks / n);
      }
    }
  }
  REQUIRE(worst > 32);  // else these lists are no longer what they were made for
  for (int trial = 0; trial < 300; ++trial) {
    const int64_t n = pick(200, 6000), k = trial % 2 ? pick(1, n) : pick(1, 60), kinds = trial % 3 ? 1000000 : pick(1, 30);
    std::vector<float> x((size_t)n);
    for (float &v : x) v = pick(0, 30) ? (float)pick(-kinds, kinds) * .37f : trial % 5 ? -HUGE_VALF : -0.0f;
    if (trial % 7 < 2) std::sort(x.begin(), x.end());
    if (trial % 7 == 1) std::reverse(x.begin(), x.end());
    const int64_t looks = looked(x, k);
    REQUIRE(looks <= 8 * n);
    ordinary = std::max(ordinary, looks * 10 / n);
  }
  printf("bounded selections: %lld looks at each value of a list made for it at most, %.1f of others\n", (long long)worst, (double)ordinary / 10);
}

// The boundary of top-p in a short list is that of a sort, for equal values, weights of 0 and limits met exactly too.
void short_lists() {
  for (int trial = 0; trial < 20000; ++trial) {
    const int64_t n = pick(1, trial % 3 ? 60 : kShortList), kinds = trial % 2 ? 1000000 : pick(1, 12), heaviest = trial % 5 ? 1 << 20 : 3;
    auto z = exactly<float>(n);
    auto w = exactly<uint64_t>(n);
    uint64_t total = 0;
    std::vector<std::pair<float, uint64_t>> sorted;
    for (int64_t i = 0; i < n; ++i) {
      z[i] = (float)pick(-kinds, kinds) * (trial % 7 ? .25f : 3e32f);
      w[i] = (uint64_t)pick(0, heaviest);
      if (pick(0, 30) == 0) z[i] = -HUGE_VALF, w[i] = 0;
      total += w[i];
      sorted.push_back({z[i], w[i]});
    }
    if (!total) continue;
    const float max = *std::max_element(z.get(), z.get() + n);
    const uint64_t limit = trial % 4 ? (uint64_t)pick(0, (int64_t)total - 1) : 0;
    std::sort(sorted.begin(), sorted.end());
    uint64_t running = 0, before = 0;
    float boundary = 0;
    for (size_t i = 0; i < sorted.size();) {
      uint64_t same = 0;
      boundary = sorted[i].first;
      while (i < sorted.size() && sorted[i].first == boundary) same += sorted[i++].second;
      if (running + same > limit) break;
      running += same;
    }
    REQUIRE(ts_short_boundary(z.get(), w.get(), n, max, limit, &before) == boundary);
    REQUIRE(before == running);
  }
  puts("short lists: the boundary of top-p is that of a sort");
}

}  // namespace

int main() {
  REQUIRE(ts_abi_version() == TS_ABI_VERSION);
  arithmetic();
  refusals();
  chains();
  sums_of_rows();
  flat_rows();
  selections();
  bounded_selections();
  tiny_values();
  short_lists();
  guarded_rows();
  later_top_p();
  overflowing_masks();
  threads();
  shared_rows();
  puts("all checks passed");
  return 0;
}
