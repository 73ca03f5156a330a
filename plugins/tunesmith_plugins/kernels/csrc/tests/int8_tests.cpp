// Checks of the int8 layers that need no Python, on every instruction set: equal to 64-bit sums at every tile edge, to
// the plain arithmetic around them, on any number of threads; nothing is read or written outside the arrays (each
// ends at a page that may not be touched, which sees assembly and gathers too). Meant for sanitizers as well.
#include <atomic>
#include <thread>

#include "../cpu/pool.h"
#include "int8_oracle.h"
#include "int8_share.h"

namespace {

void linear_case(int64_t rows, int64_t n, int64_t k, int32_t mode, int64_t group, int extreme) {
  const Layer layer(n, k, group, extreme);
  Guarded<float> x(rows * k);
  for (int64_t i = 0; i < rows * k; ++i) x[i] = extreme ? 255.0f : real(-2, 3);
  if (!extreme && rows > 2) x[k + k / 2] = NAN, x[2 * k] = INFINITY;
  if (!extreme && rows > 3) memset(&x[3 * k], 0, sizeof(float) * (size_t)k);
  if (mode == TS_MIXED)  // about half of the rows need 12 bits
    for (int64_t i = 0; i < rows; ++i)
      if (pick(0, 1)) x[i * k + k / 3] = 90.0f;
  const int32_t activation = extreme ? 0 : (int32_t)pick(0, 4);
  const float static_scale = 0.011f;
  std::vector<float> right((size_t)(rows * n));
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < n; ++j) right[(size_t)(i * n + j)] = expected(layer, &x[i * k], j, mode, activation, static_scale, 100);
  Guarded<float> out(rows * n);
  const ts_int8_layer call = layer.call(out.get(), activation);
  ts_int8_args args = {};
  args.x = x.get();
  args.rows = rows;
  args.k = args.row_stride = k;
  args.mode = mode;
  args.group_size = group;
  args.layers = &call;
  args.layer_count = 1;
  args.static_scale = static_scale;
  args.static_zero_point = 100;
  args.threads = (int32_t)pick(1, 3);
  for (const std::string &isa : instruction_sets()) {
    REQUIRE(ts_isa_set(isa.c_str()) == TS_OK);
    memset(out.get(), 0, (size_t)(rows * n) * sizeof(float));
    REQUIRE(ts_int8_linears(&args) == TS_OK);
    for (int64_t i = 0; i < rows * n; ++i) {
      if (same(out[i], right[(size_t)i])) continue;
      fprintf(stderr, "%s: %lld x %lld x %lld, mode %d, group %lld: %g, not %g, at %lld\n", isa.c_str(), (long long)rows, (long long)n,
              (long long)k, mode, (long long)group, out[i], right[(size_t)i], (long long)i);
      exit(1);
    }
  }
}

void shapes() {
  int cases = 0;
  for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 15, 16, 17, 31, 32, 33, 34, 49}) {
    for (const int64_t n : {1, 63, 64, 65}) {
      for (const int64_t k : {1, 3, 4, 5, 63, 64, 65, 130}) {
        linear_case(rows, n, k, (int32_t)pick(0, 2), 0, 0);
        ++cases;
      }
      for (const int64_t k : {128, 129, 192, 260}) linear_case(rows, n, k, TS_MIXED, 0, 0), ++cases;
    }
  }
  for (const int64_t group : {32, 64, 128, 192})
    for (const int64_t k : {1, 31, 32, 33, 64, 100, 256, 259})
      for (const int64_t rows : {1, 2, 3, 9}) linear_case(rows, 66, k, TS_WEIGHT_ONLY, group, 0), ++cases;
  for (const int64_t n : {128, 130, 200, 256, 257, 321, 511})  // panels side by side, four at most, and those left over
    for (const int64_t k : {1, 63, 64, 65, 191, 257}) linear_case(1, n, k, TS_DYNAMIC, 0, 0), linear_case(1, n, k, TS_MIXED, 0, 0), cases += 2;
  linear_case(200, 70, 300, TS_DYNAMIC, 0, 0);
  linear_case(200, 70, 300, TS_WEIGHT_ONLY, 0, 0);
  linear_case(450, 66, 8000, TS_MIXED, 0, 0);  // more than one stretch
  linear_case(3, 20, TS_MAX_K_12, TS_WEIGHT_ONLY, 0, 0);
  linear_case(3, 20, TS_MAX_K_12 + 1, TS_WEIGHT_ONLY, 0, 0);
  for (const int extreme : {1, 2}) {  // the largest sums that can occur
    linear_case(1, 66, TS_MAX_K, TS_DYNAMIC, 0, extreme);
    linear_case(2, 3, TS_MAX_K, TS_DYNAMIC, 0, extreme);
    linear_case(17, 3, TS_MAX_K, TS_DYNAMIC, 0, extreme);
    // Sums of weights on both sides of 2^22, where AVX-512 no longer takes them apart for the rows of a whole panel.
    for (const int64_t k : {32767, 33027}) linear_case(4, 64, k, TS_STATIC, 0, extreme);  // a zero point of 100
    linear_case(2, 3, TS_MAX_K, TS_WEIGHT_ONLY, 0, extreme);
    linear_case(2, 3, TS_MAX_K_12, TS_WEIGHT_ONLY, 0, extreme);
  }
  printf("int8: %d shapes equal to 64-bit sums on %s, extremes at k = %d\n", cases, ts_isa_available(), TS_MAX_K);
}

// Rows as the interface gives them, whatever a table stores.
void rows() {
  for (const int64_t k : {1, 7, 8, 9, 64, 65, 131}) {
    Guarded<float> x(3 * k), scale(3);
    Guarded<uint8_t> q(3 * k);
    Guarded<int32_t> zero_point(3);
    for (int64_t i = 0; i < 3 * k; ++i) x[i] = i < k ? NAN : real(-2, 3);
    ts_quantize_args args = {x.get(), 3, k, k, TS_F32, 0, q.get(), scale.get(), zero_point.get(), nullptr};
    for (const std::string &isa : instruction_sets()) {
      REQUIRE(ts_isa_set(isa.c_str()) == TS_OK && ts_quantize_rows(&args) == TS_OK);
      for (int64_t i = 0; i < k; ++i) REQUIRE(q[i] == 0);
      REQUIRE(isnan(scale[0]) && zero_point[0] == 0);
      for (int64_t i = k; i < 3 * k; ++i)
        REQUIRE(q[i] == ts_quantize_clamped(x[i], 1.0f / scale[i / k], zero_point[i / k]));
    }
  }
  puts("rows: quantised as defined on every instruction set");
}

// Norm, gate and residual: the same bits on every instruction set and number of threads, inside the arrays, in float32
// and bfloat16.
void fused() {
  const int64_t rows = 5, n = 70, k = 167;
  const Layer gate(n, k, 0, 0), up(n, k, 0, 0);
  Guarded<float> gain(k), shift(k);
  for (int64_t i = 0; i < k; ++i) gain[i] = real(.5, 1.5), shift[i] = real(-1, 1);
  gain[9] = 30;
  for (const auto &[dtype, mode] : std::vector<std::pair<int32_t, int32_t>>{
           {TS_F32, TS_DYNAMIC}, {TS_BF16, TS_DYNAMIC}, {TS_F32, TS_MIXED}, {TS_BF16, TS_MIXED}}) {
    const int64_t item = dtype == TS_F32 ? 4 : 2;
    Guarded<uint8_t> x(rows * k * item), normed(rows * k * item), first(rows * n * item), second(rows * n * item), residual(rows * n * item);
    for (int64_t i = 0; i < rows * k; ++i) ts_store(x.get(), i, dtype, real(-2, 3));
    for (int64_t i = 0; i < rows * n; ++i) ts_store(residual.get(), i, dtype, real(-2, 3));
    for (const int32_t norm : {TS_RMS_NORM, TS_LAYER_NORM}) {
      std::vector<uint8_t> right;
      for (const std::string &isa : instruction_sets()) {
        for (const int32_t threads : {1, 3}) {
          REQUIRE(ts_isa_set(isa.c_str()) == TS_OK);
          ts_int8_layer layers[] = {gate.call(first.get(), TS_SILU), up.call(second.get(), 0)};
          layers[1].multiply = first.get();
          layers[1].residual = residual.get();
          ts_int8_args args = {};
          args.x = x.get();
          args.rows = rows;
          args.k = args.row_stride = k;
          args.dtype = dtype;
          args.mode = mode;
          args.layers = layers;
          args.layer_count = 2;
          args.threads = threads;
          args.norm = norm;
          args.norm_weight = gain.get();
          args.norm_bias = norm == TS_LAYER_NORM ? shift.get() : nullptr;
          args.norm_epsilon = 1e-5;
          args.norm_out = normed.get();
          REQUIRE(ts_int8_linears(&args) == TS_OK);
          std::vector<uint8_t> found(second.get(), second.get() + rows * n * item);
          found.insert(found.end(), normed.get(), normed.get() + rows * k * item);
          if (right.empty()) right = found;
          REQUIRE(found == right);
        }
      }
    }
  }
  puts("fused: norms, gates and residuals have the same bits everywhere");
}

std::atomic<int> teams{0};

void team(void (*body)(void *), void *context, unsigned threads, unsigned) {
  ++teams;
  std::vector<std::thread> others;
  for (unsigned i = 1; i < threads; ++i) others.emplace_back(body, context);
  body(context);
  for (std::thread &other : others) other.join();
}

// Large enough to be shared, from several callers at once: one gets the helpers, the others work alone.
void threads() {
  const int64_t rows = 40, n = 640, k = 512;
  const Layer layer(n, k, 0, 0), other(n / 2, k, 0, 0);
  std::vector<float> x((size_t)(rows * k)), alone((size_t)(rows * n)), second((size_t)(rows * n / 2));
  for (float &v : x) v = real(-2, 3);
  for (int64_t i = 0; i < rows; i += 3) x[(size_t)(i * k)] = 90;
  auto compute = [&](float *out, float *out2, int32_t count) {
    const ts_int8_layer calls[] = {layer.call(out, TS_GELU), other.call(out2, 0)};
    ts_int8_args args = {};
    args.x = x.data();
    args.rows = rows;
    args.k = args.row_stride = k;
    args.mode = TS_MIXED;
    args.layers = calls;
    args.layer_count = 2;
    args.threads = count;
    REQUIRE(ts_int8_linears(&args) == TS_OK);
  };
  compute(alone.data(), second.data(), 1);
  for (const ts_team given : {(ts_team) nullptr, team}) {
    ts_use_team(given);
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 4; ++caller) {
      callers.emplace_back([&, caller] {
        std::vector<float> mine(alone.size()), mine2(second.size());
        for (int turn = 0; turn < 10; ++turn) {
          compute(mine.data(), mine2.data(), 1 + (caller + turn) % 4);
          REQUIRE(mine == alone && mine2 == second);
        }
      });
    }
    for (std::thread &caller : callers) caller.join();
  }
  REQUIRE(teams > 0);
#if defined(TS_GUARD_PAGES) && !defined(__SANITIZE_THREAD__)
  const pid_t child = fork();  // neither the pool nor the team are the parent's, whose threads it does not have
  if (child == 0) {
    std::vector<float> mine(alone.size()), mine2(second.size());
    const int before = teams;
    compute(mine.data(), mine2.data(), 3);
    _exit(mine == alone && mine2 == second && teams == before ? 0 : 1);
  }
  int status = 1;
  REQUIRE(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
#endif
  ts_use_team(nullptr);
  puts("threads: the same bits on 1 to 4 threads, their own or a team's, from four callers at once, and in a forked process");
}

// A caller that asks ts_may_share() gives the number of threads wherever it is used; without a team less is shared.
void sharing() {
  int shared = 0, apart = 0;
  for (int turn = 0; turn < 200; ++turn) {
    ts_use_team(team);  // with new patience
    const int64_t rows = pick(1, 3) == 1 ? pick(1, 40) : 1, n = pick(1, 700), k = pick(1, 700);
    const Layer layer(n, k, 0, 0);
    std::vector<float> x((size_t)(rows * k)), out((size_t)(rows * n));
    for (float &v : x) v = real(-2, 3);
    const ts_int8_layer call = layer.call(out.data(), 0);
    ts_int8_args args = {};
    args.x = x.data(), args.rows = rows, args.k = args.row_stride = k, args.mode = pick(0, 1) ? TS_MIXED : TS_DYNAMIC;
    args.layers = &call, args.layer_count = 1, args.threads = 2;
    const int before = teams;
    const bool may = ts_may_share(rows, (n + 63) / 64 * 64, (k + 63) / 64 * 64);
    REQUIRE(ts_int8_linears(&args) == TS_OK && (may || teams == before));
    teams != before ? ++shared : ++apart;
  }
  REQUIRE(shared > 20 && apart > 20);
  ts_use_team(nullptr);
  puts("sharing: only what a caller expects to be shared is");
}

// Inside the arrays, and with the same bits on every instruction set and number of threads.
void attention() {
  int cases = 0;
  for (const int64_t time : {1, 2, 513}) {
    for (const int64_t size : {1, 15, 16, 17, 64, 83}) {
      const int64_t batch = 2, heads = 4, kv_heads = 2, queries = 2, room = time + (size % 2 ? 3 : 0), rows = batch * kv_heads * room;
      Guarded<float> q(batch * heads * queries * size), k_scale(rows), v_scale(rows), mask(batch * time), out(q.size());
      Guarded<int8_t> k(rows * size), v(rows * size);
      for (int64_t i = 0; i < q.size(); ++i) q[i] = real(-2, 3);
      for (int64_t i = 0; i < rows; ++i) k_scale[i] = real(.001, .01), v_scale[i] = real(.001, .01);
      for (int64_t i = 0; i < rows * size; ++i) k[i] = (int8_t)pick(-127, 127), v[i] = (int8_t)pick(-127, 127);
      for (int64_t i = 0; i < mask.size(); ++i) mask[i] = i % time && pick(0, 3) == 0 ? -HUGE_VALF : real(-1, 1);
      const double scale = .125;
      int64_t words[19] = {(int64_t)q.get(), (int64_t)out.get(), batch, heads, queries, kv_heads, time, size, (int64_t)k.get(),
                           (int64_t)k_scale.get(), (int64_t)v.get(), (int64_t)v_scale.get(), (int64_t)mask.get(), time, 0, 0, 0, 1, room};
      memcpy(words + 16, &scale, sizeof scale);
      std::vector<float> right;
      for (const std::string &isa : instruction_sets()) {
        for (const int64_t threads : {1, 3}) {
          words[17] = threads;
          memset(out.get(), 0, sizeof(float) * (size_t)out.size());
          REQUIRE(ts_isa_set(isa.c_str()) == TS_OK && ts_int8_attention_words(words, 19) == TS_OK);
          const std::vector<float> found(out.get(), out.get() + out.size());
          if (right.empty()) right = found;
          REQUIRE(found == right);
          ++cases;
        }
      }
    }
  }
  const int64_t none[19] = {};
  REQUIRE(ts_int8_attention_words(none, 18) == TS_INVALID && ts_int8_attention_words(none, 19) == TS_INVALID);
  printf("attention: %d cases with the same bits everywhere\n", cases);
}

// A step over a float32 cache: inside the arrays, the same bits on every instruction set and number of threads, new tokens in their
// places, and near what float64 says.
void float_attention() {
  int cases = 0;
  for (const int64_t time : {2, 65, 700}) {
    for (const int64_t size : {2, 16, 18, 64, 84}) {
      const int64_t batch = 2, heads = 4, kv_heads = 2, queries = 2, room = time + (size % 4 ? 3 : 0), rows = batch * kv_heads * room;
      Guarded<float> q(batch * heads * queries * size), out(q.size()), k(batch * queries * kv_heads * size), v(k.size());
      Guarded<float> keys(rows * size), values(rows * size), cos(queries * size), sin(queries * size), mask(batch * time);
      Guarded<uint8_t> seen(batch * time);
      for (Guarded<float> *part : {&q, &k, &v, &cos, &sin, &mask, &keys, &values})
        for (int64_t i = 0; i < part->size(); ++i) (*part)[i] = real(-1, 1);
      for (int64_t i = 0; i < seen.size(); ++i) seen[i] = i % time == 0 || pick(0, 3);
      const std::vector<float> keys_before(keys.get(), keys.get() + keys.size()), values_before(values.get(), values.get() + values.size());
      const double scale = .125;
      for (const int64_t kind : {0, 1, 2}) {
        const int64_t masked = kind == 0 ? 0 : kind == 1 ? (int64_t)mask.get() : (int64_t)seen.get();
        int64_t words[31] = {(int64_t)q.get(), (int64_t)out.get(), batch, heads, queries, kv_heads, time, size,
                             queries * heads * size, size, heads * size, (int64_t)k.get(), (int64_t)v.get(), kv_heads * size, kv_heads * size,
                             (int64_t)keys.get(), (int64_t)values.get(), kv_heads * room * size, room * size, kv_heads * room * size, room * size,
                             (int64_t)cos.get(), (int64_t)sin.get(), queries, masked, kind, time, 0, 0, 0, 1};
        memcpy(words + 29, &scale, sizeof scale);
        std::vector<float> right;
        for (const std::string &isa : instruction_sets()) {
          for (const int64_t threads : {1, 3}) {
            words[30] = threads;
            memset(out.get(), 0, sizeof(float) * (size_t)out.size());
            REQUIRE(ts_isa_set(isa.c_str()) == TS_OK && ts_float_attention_words(words, 31) == TS_OK);
            const std::vector<float> found(out.get(), out.get() + out.size());
            if (right.empty()) right = found;
            REQUIRE(found == right);
            ++cases;
          }
        }
        for (int64_t i = 0; i < keys.size(); ++i) {
          const int64_t token = i / size % room, row = i / size / room / kv_heads, head = i / size / room % kv_heads, d = i % size;
          const int64_t from = ((row * queries + token - time + queries) * kv_heads + head) * size;
          const bool fresh = token >= time - queries && token < time;
          if (!fresh) {
            REQUIRE(keys[i] == keys_before[(size_t)i] && values[i] == values_before[(size_t)i]);
            continue;
          }
          const int64_t n = token - time + queries, half = size / 2;
          const float a = k[from + d], other = d < half ? -k[from + d + half] : k[from + d - half];
          REQUIRE(values[i] == v[from + d] && fabs(keys[i] - ((double)a * cos[n * size + d] + (double)other * sin[n * size + d])) < 1e-6);
        }
        for (int64_t query = 0; query < batch * queries * heads; ++query) {
          const int64_t row = query / heads / queries, n = query / heads % queries, head = query % heads;
          const float *x = q.get() + query * size;
          std::vector<double> mixed((size_t)size);
          double total = 0;
          for (int64_t t = 0; t < time; ++t) {
            const int64_t place = ((row * kv_heads + head / (heads / kv_heads)) * room + t) * size, half = size / 2;
            double score = 0;
            for (int64_t d = 0; d < size; ++d) {
              const double other = d < half ? -x[d + half] : x[d - half];
              score += ((double)x[d] * cos[n * size + d] + other * sin[n * size + d]) * keys[place + d];
            }
            score = score * scale + (kind == 1 ? mask[row * time + t] : 0.0);
            const double weight = kind == 2 && !seen[row * time + t] ? 0.0 : exp(score);
            total += weight;
            for (int64_t d = 0; d < size; ++d) mixed[(size_t)d] += weight * values[place + d];
          }
          for (int64_t d = 0; d < size; ++d) REQUIRE(fabs(out[query * size + d] - mixed[(size_t)d] / total) < 1e-5);
        }
      }
    }
  }
  const int64_t none[31] = {};
  REQUIRE(ts_float_attention_words(none, 30) == TS_INVALID && ts_float_attention_words(none, 31) == TS_INVALID);
  printf("attention over floats: %d cases with the same bits everywhere\n", cases);
}

// New tokens stand in their places, rounded as divisions in float64 say, and nothing else is written.
void append() {
  int cases = 0;
  for (const int32_t dtype : {TS_F32, TS_BF16}) {
    for (const int64_t size : {1, 16, 83}) {
      const int64_t batch = 2, heads = 3, fresh = 2, room = 5, first = 2, rows = batch * heads * room, count = batch * heads * fresh * size;
      Guarded<uint8_t> x[2] = {Guarded<uint8_t>(count * 4), Guarded<uint8_t>(count * 4)};
      Guarded<int8_t> q[2] = {Guarded<int8_t>(rows * size), Guarded<int8_t>(rows * size)};
      Guarded<float> scale[2] = {Guarded<float>(rows), Guarded<float>(rows)};
      std::vector<int64_t> words = {batch, heads, fresh, size, dtype, room, first};
      for (int i = 0; i < 2; ++i) {
        uint8_t *given = x[i].get() + (dtype == TS_F32 ? 0 : count * 2);
        for (int64_t at = 0; at < count; ++at) ts_store(given, at, dtype, real(-3, 2));
        ts_store(given, 0, dtype, NAN);
        ts_store(given, size, dtype, INFINITY);
        for (int64_t d = 0; d < size; ++d) ts_store(given, 2 * size + d, dtype, 0);
        memset(q[i].get(), 77, (size_t)(rows * size));
        for (int64_t row = 0; row < rows; ++row) scale[i][row] = -1;
        // (batch, new, heads, size) in memory, as models' projections leave it
        for (const int64_t word : {(int64_t)given, heads * fresh * size, size, heads * size, (int64_t)q[i].get(), (int64_t)scale[i].get()}) words.push_back(word);
      }
      REQUIRE(ts_int8_append_words(words.data(), (int64_t)words.size()) == TS_OK);
      for (int i = 0; i < 2; ++i) {
        const void *given = x[i].get() + (dtype == TS_F32 ? 0 : count * 2);
        for (int64_t row = 0; row < rows; ++row) {
          const int64_t token = row % room - first, head = row / room % heads, which = row / room / heads;
          const int8_t *found = q[i].get() + row * size;
          if (token < 0 || token >= fresh) {
            REQUIRE(scale[i][row] == -1 && found[0] == 77 && found[size - 1] == 77);
            continue;
          }
          const int64_t from = ((which * fresh + token) * heads + head) * size;
          float most = 0;
          bool finite = true;
          for (int64_t d = 0; d < size; ++d) {
            const float value = fabsf(ts_load(given, from + d, dtype));
            finite &= value < HUGE_VALF;
            most = value > most ? value : most;
          }
          const float right = most / 127.0f < 0x1p-126f ? 0x1p-126f : most / 127.0f;
          if (finite) REQUIRE(scale[i][row] == right);
          if (!finite) REQUIRE(!(scale[i][row] < HUGE_VALF));
          for (int64_t d = 0; d < size; ++d) REQUIRE(found[d] == (finite ? (int)nearbyint((double)(ts_load(given, from + d, dtype) / right)) : 0));
          ++cases;
        }
      }
      words[6] = 4;  // behind the room's end
      REQUIRE(ts_int8_append_words(words.data(), (int64_t)words.size()) == TS_INVALID && ts_int8_append_words(words.data(), 18) == TS_INVALID);
      words[6] = first, words[4] = TS_F64;
      REQUIRE(ts_int8_append_words(words.data(), (int64_t)words.size()) == TS_UNSUPPORTED);
    }
  }
  printf("append: %d rows of an int8 cache\n", cases);
}

void pool() {
  for (const bool own : {true, false, true}) {
    ts_use_team(own ? nullptr : team);
    REQUIRE(ts_has_team() != own);
    const int before = teams;
    std::vector<int> seen(1000);
    for (int turn = 0; turn < 50; ++turn) {
      ts_parallel(4, (int64_t)seen.size(), 0, [](void *context, int64_t index) { ++((std::vector<int> *)context)->operator[]((size_t)index); }, &seen);
    }
    for (const int count : seen) REQUIRE(count == 50);
    REQUIRE(own ? teams == before : teams > before);  // not 50: patience
  }
  puts("pool: every piece done once, by threads of its own and by a team");
}

// A team that takes far longer than the work is let be for a while, and then asked again.
void patience() {
  static std::atomic<int> late{20};
  const auto slow = [](void (*body)(void *), void *context, unsigned, unsigned) {
    ++teams;
    body(context);
    std::this_thread::sleep_for(std::chrono::milliseconds(late));
  };
  ts_use_team(slow);
  std::vector<int> seen(50);
  const auto turn = [&](double cost = 0) {
    ts_parallel(2, (int64_t)seen.size(), cost, [](void *context, int64_t index) { ++((std::vector<int> *)context)->operator[]((size_t)index); }, &seen);
  };
  int before = teams, turns = 0;
  const auto asked = [&] { return teams - before; };
  for (const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(100); std::chrono::steady_clock::now() < end; ++turns) turn();
  REQUIRE(asked() == 1 && turns > 10);  // 20 ms lost: alone for 160 ms or more
  turn(100e3), ++turns;
  REQUIRE(asked() == 1);
  late = 1;
  turn(1e6), ++turns;  // beside a second, 20 ms are little
  REQUIRE(asked() == 2);
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  turn(), ++turns;  // nor does the millisecond that this one lost end the pause of the 20
  REQUIRE(asked() == 2);
  late = 20;
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  turn(), ++turns;
  REQUIRE(asked() == 3);
  for (const int count : seen) REQUIRE(count == turns);
  ts_use_team(slow);  // as any other, it is asked at once
  turn();
  REQUIRE(asked() == 4);
  ts_use_team(nullptr);
  puts("patience: a team that is waited for longer than the work takes is let be, and asked again");
}

void refusals() {
  ts_int8_args args = {};
  REQUIRE(ts_int8_linears(nullptr) == TS_INVALID);
  args.k = TS_MAX_K + 1;
  REQUIRE(ts_int8_linears(&args) == TS_INVALID && strstr(ts_last_error(), "overflow"));
  args.k = 8;
  args.mode = 7;
  REQUIRE(ts_int8_linears(&args) == TS_INVALID && strstr(ts_last_error(), "mode"));
  args.mode = TS_STATIC;
  REQUIRE(ts_int8_linears(&args) == TS_INVALID && strstr(ts_last_error(), "static"));
  args.mode = TS_WEIGHT_ONLY;
  args.group_size = 96;
  REQUIRE(ts_int8_linears(&args) == TS_INVALID && strstr(ts_last_error(), "group_size"));
  args.group_size = 0;
  ts_int8_layer layer = {};
  layer.n = 2;
  args.layers = &layer;
  args.layer_count = 1;
  const float x[8] = {};
  args.x = x;
  args.rows = 1;
  REQUIRE(ts_int8_linears(&args) == TS_INVALID && strstr(ts_last_error(), "layer 0"));
  int8_t byte = 0;
  REQUIRE(ts_int8_pack(&byte, 1, TS_MAX_K + 1, &byte) == TS_INVALID);
  puts("refusals: wrong arguments give codes and messages");
}

}  // namespace

int main() {
  refusals();
  pool();
  patience();
  shapes();
  rows();
  fused();
  attention();
  float_attention();
  append();
  sharing();
  threads();
  puts("all int8 checks passed");
  return 0;
}
