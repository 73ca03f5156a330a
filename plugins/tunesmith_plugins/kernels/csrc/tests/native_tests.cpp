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

#include "native_tests.h"
#include "numeric.h"
#include "sampling.h"
#include "tunesmith.h"

namespace {

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
