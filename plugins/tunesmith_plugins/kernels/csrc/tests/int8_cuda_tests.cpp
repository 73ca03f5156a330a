// The CUDA version of the int8 layers, its kernels run on CPU threads: results from the definition at every tile edge,
// norms and gates with the bits of the CPU library, nothing outside the arrays, with and without cublasLt.
#include "int8_oracle.h"

extern "C" int64_t fake_cublaslt_products;
extern "C" int fake_cublaslt_refuses;

namespace {

int64_t up16(int64_t value) { return (value + 15) / 16 * 16; }

// A layer's weight as a CUDA device has it.
struct OnDevice {
  const Layer &layer;
  Guarded<int8_t> weight;

  explicit OnDevice(const Layer &layer_) : layer(layer_), weight(up16(layer_.n) * up16(layer_.k)) {
    for (int64_t j = 0; j < layer.n; ++j) memcpy(&weight[j * up16(layer.k)], &layer.weight[j * layer.k], (size_t)layer.k);
  }

  ts_int8_layer call(void *out, int32_t activation) const {
    ts_int8_layer made = layer.call(out, activation);
    made.weight = weight.get();
    return made;
  }
};

void run(const ts_int8_args &args) {
  int64_t widest = 0;
  for (int64_t i = 0; i < args.layer_count; ++i) widest = args.layers[i].n > widest ? args.layers[i].n : widest;
  const int64_t size = ts_cuda_int8_workspace(args.rows, args.k, args.mode, args.group_size, widest);
  Guarded<uint8_t> workspace(size);
  if (ts_cuda_int8_linears(&args, workspace.get(), size, nullptr) == TS_OK) return;
  fprintf(stderr, "%s\n", ts_cuda_last_error());
  exit(1);
}

void linear_case(int64_t rows, int64_t n, int64_t k, int32_t mode, int64_t group, int extreme) {
  const Layer layer(n, k, group, extreme);
  const OnDevice device(layer);
  Guarded<float> x(rows * k), out(rows * n);
  for (int64_t i = 0; i < rows * k; ++i) x[i] = extreme ? 255.0f : real(-2, 3);
  if (!extreme && rows > 2) x[k + k / 2] = NAN, x[2 * k] = INFINITY;
  if (!extreme && rows > 3) memset(&x[3 * k], 0, sizeof(float) * (size_t)k);
  const int32_t activation = extreme ? 0 : (int32_t)pick(0, 4);
  const ts_int8_layer call = device.call(out.get(), activation);
  ts_int8_args args = {};
  args.x = x.get();
  args.rows = rows;
  args.k = args.row_stride = k;
  args.mode = mode;
  args.group_size = group;
  args.layers = &call;
  args.layer_count = 1;
  args.static_scale = 0.011f;
  args.static_zero_point = 100;
  run(args);
  for (int64_t i = 0; i < rows * n; ++i) {
    const float right = expected(layer, &x[i / n * k], i % n, mode, activation, args.static_scale, args.static_zero_point);
    if (same(out[i], right)) continue;
    fprintf(stderr, "%lld x %lld x %lld, mode %d, group %lld, cublasLt %d: %g, not %g, at %lld\n", (long long)rows, (long long)n, (long long)k,
            mode, (long long)group, ts_cuda_cublaslt(-1), out[i], right, (long long)i);
    exit(1);
  }
}

void shapes() {
  int cases = 0;
  for (const int32_t use : {0, 1}) {
    REQUIRE(ts_cuda_cublaslt(use) == use);
    const int64_t before = fake_cublaslt_products;
    for (const int64_t rows : {1, 2, 3, 5, 7, 8, 9, 16, 17, 33, 65}) {
      if (use && rows < 9) continue;  // nothing new
      for (const int64_t n : {1, 16, 33}) {
        for (const int64_t k : {1, 16, 63, 129}) linear_case(rows, n, k, (int32_t)(cases % 3), 0, 0), ++cases;
      }
    }
    REQUIRE((fake_cublaslt_products > before) == (use == 1));
  }
  for (const int64_t group : {32, 64, 192})
    for (const int64_t k : {1, 32, 33, 200})
      for (const int64_t rows : {1, 8, 9}) linear_case(rows, 18, k, TS_WEIGHT_ONLY, group, 0), ++cases;
  linear_case(2, 3, TS_MAX_K_12 + 1, TS_WEIGHT_ONLY, 0, 0);
  for (const int64_t k : {1024, 1025}) linear_case(16, 17, k, TS_DYNAMIC, 0, 0);  // few rows that a block just has room for, or not
  for (const int64_t k : {2032, 2050}) linear_case(8, 17, k, TS_STATIC, 0, 0), linear_case(3, 17, k, TS_WEIGHT_ONLY, 0, 0);
  for (const int extreme : {1, 2}) {  // the largest sums that can occur
    linear_case(1, 1, TS_MAX_K, TS_DYNAMIC, 0, extreme);
    linear_case(17, 1, TS_MAX_K, TS_DYNAMIC, 0, extreme);
    linear_case(1, 1, TS_MAX_K_12, TS_WEIGHT_ONLY, 0, extreme);
    linear_case(1, 1, TS_MAX_K, TS_WEIGHT_ONLY, 0, extreme);
  }
  fake_cublaslt_refuses = 1;
  const int64_t before = fake_cublaslt_products;
  linear_case(20, 33, 65, TS_DYNAMIC, 0, 0);
  REQUIRE(fake_cublaslt_products == before);
  fake_cublaslt_refuses = 0;
  printf("int8 on CUDA: %d shapes equal to 64-bit sums, extremes at k = %d, with and without cublasLt\n", cases, TS_MAX_K);
}

// Two layers of which the second is multiplied by the first, after a norm, with a residual that is the result's own place.
void fused() {
  const int64_t n = 35, k = 67;
  const Layer gate(n, k, 0, 0), up(n, k, 0, 0);
  const OnDevice gate_there(gate), up_there(up);
  Guarded<float> gain(k), shift(k);
  for (int64_t i = 0; i < k; ++i) gain[i] = real(.5, 1.5), shift[i] = real(-1, 1);
  int cases = 0;
  for (const int64_t rows : {3, 20}) {
    for (const int32_t dtype : {TS_F32, TS_BF16}) {
      const int64_t item = dtype == TS_F32 ? 4 : 2;
      Guarded<uint8_t> x(rows * k * item), normed(rows * k * item), first(rows * n * item), second(rows * n * item), residual(rows * n * item);
      for (int64_t i = 0; i < rows * k; ++i) ts_store(x.get(), i, dtype, real(-2, 3));
      for (int64_t i = 0; i < rows * n; ++i) ts_store(residual.get(), i, dtype, real(-2, 3));
      for (const int32_t norm : {TS_RMS_NORM, TS_LAYER_NORM}) {
        std::vector<uint8_t> results[2];
        for (const bool cuda : {false, true}) {
          memcpy(second.get(), residual.get(), (size_t)(rows * n * item));
          ts_int8_layer layers[] = {cuda ? gate_there.call(first.get(), TS_SILU) : gate.call(first.get(), TS_SILU),
                                    cuda ? up_there.call(second.get(), 0) : up.call(second.get(), 0)};
          layers[1].multiply = first.get();
          layers[1].residual = second.get();
          ts_int8_args args = {};
          args.x = x.get();
          args.rows = rows;
          args.k = args.row_stride = k;
          args.dtype = dtype;
          args.layers = layers;
          args.layer_count = 2;
          args.norm = norm;
          args.norm_weight = gain.get();
          args.norm_bias = norm == TS_LAYER_NORM ? shift.get() : nullptr;
          args.norm_epsilon = 1e-5;
          args.norm_out = normed.get();
          if (cuda) run(args);
          else REQUIRE(ts_int8_linears(&args) == TS_OK);
          results[cuda].assign(second.get(), second.get() + rows * n * item);
          results[cuda].insert(results[cuda].end(), first.get(), first.get() + rows * n * item);
          results[cuda].insert(results[cuda].end(), normed.get(), normed.get() + rows * k * item);
        }
        REQUIRE(results[0] == results[1]);
        ++cases;
      }
    }
  }
  printf("fused on CUDA: %d cases of norms, gates and residuals with the bits of the CPU\n", cases);
}

void rows() {
  for (const int64_t k : {1, 65}) {
    Guarded<float> x(3 * k), scale(3), scale2(3);
    Guarded<uint8_t> q(3 * k), q2(3 * k);
    Guarded<int32_t> zero(3), zero2(3);
    for (int64_t i = 0; i < 3 * k; ++i) x[i] = i == k / 2 ? NAN : real(-2, 3);
    ts_quantize_args args = {x.get(), 3, k, k, TS_F32, 0, q.get(), scale.get(), zero.get(), nullptr};
    REQUIRE(ts_quantize_rows(&args) == TS_OK);
    args.q = q2.get(), args.scale = scale2.get(), args.zero_point = zero2.get();
    REQUIRE(ts_cuda_quantize_rows(&args) == TS_OK);
    REQUIRE(memcmp(q.get(), q2.get(), (size_t)(3 * k)) == 0);
    for (int i = 0; i < 3; ++i) REQUIRE(same(scale[i], scale2[i]) && zero[i] == zero2[i]);
  }
  puts("rows on CUDA: quantised as on the CPU");
}

int64_t word(const void *pointer) { return (int64_t)(intptr_t)pointer; }

// As tunesmith.h says it.
int64_t attention_space(int64_t tasks, int64_t time, int64_t size) { return tasks * (8 * size + 4 * time + 8 * ((time + 63) / 64) + 24); }

// The cache may begin at any address.
void attention() {
  int cases = 0;
  for (const int64_t size : {1, 15, 16, 65, 128, 2000}) {
    for (const int64_t time : {1, 7, 64, 600}) {
      if (size * time > 200000) continue;
      const int64_t shift = (cases / 2 + cases / 8) % 2, batch = 2, heads = 6, kv_heads = 2, queries = 2, tasks = batch * heads * queries, tokens = batch * kv_heads * time;
      Guarded<float> q(tasks * size), k_scale(tokens), v_scale(tokens), mask(queries * time), out(tasks * size), out2(tasks * size);
      Guarded<int8_t> k(tokens * size + shift), v(tokens * size);
      const int64_t space = attention_space(tasks, time, size);
      Guarded<int64_t> workspace(space / 8 + 1);
      for (int64_t i = 0; i < tasks * size; ++i) q[i] = real(-3, 3);
      q[size / 2] = NAN;
      for (int64_t i = 0; i < tokens; ++i) k_scale[i] = real(.001, .02), v_scale[i] = real(.001, .02);
      for (int64_t i = 0; i < tokens * size; ++i) k[i + shift] = (int8_t)pick(-128, 127), v[i] = (int8_t)pick(-128, 127);
      for (int64_t i = 0; i < queries * time; ++i) mask[i] = pick(0, 3) ? real(-2, 2) : -INFINITY;
      const double scale = 0.3;
      int64_t words[3 + 19] = {0, word(workspace.get()), space, word(q.get()), word(out.get()), batch, heads, queries, kv_heads,
                               time, size, word(k.get() + shift), word(k_scale.get()), word(v.get()), word(v_scale.get()), word(mask.get()),
                               0, 0, time, 0, 1, time};
      memcpy(words + 3 + 16, &scale, sizeof scale);
      for (const bool masked : {false, true}) {
        words[3 + 12] = masked ? word(mask.get()) : 0;
        words[3 + 1] = word(out.get());
        REQUIRE(ts_int8_attention_words(words + 3, 19) == TS_OK);
        words[3 + 1] = word(out2.get());
        REQUIRE(ts_cuda_int8_attention_words(words, 22) == TS_OK);
        for (int64_t i = 0; i < tasks * size; ++i) REQUIRE(same(out[i], out2[i]));
        ++cases;
      }
      words[2] -= 1;
      REQUIRE(ts_cuda_int8_attention_words(words, 22) == TS_INVALID && strstr(ts_cuda_last_error(), "work space"));
    }
  }
  printf("attention on CUDA: %d caches with the bits of the CPU\n", cases);
}

// Every type, strides as models leave them, rows that are zero or not finite.
void append() {
  const int64_t batch = 2, heads = 2, fresh = 3, room = 7, first = 2, rows = batch * heads * room;
  int cases = 0;
  for (const int64_t size : {1, 64, 130}) {
    const int64_t count = batch * heads * fresh * size;
    for (const int32_t dtype : {TS_F32, TS_BF16, TS_F16}) {
      Guarded<uint16_t> x(2 * count);
      for (int64_t i = 0; i < count; ++i) {
        if (dtype == TS_F32) ((float *)x.get())[i] = i < size ? 0 : i % (7 * size) == 0 ? INFINITY : real(-2, 3);
        if (dtype != TS_F32) x[i] = (uint16_t)pick(0, 65535);  // NaN, infinities and subnormals among them
      }
      std::vector<int8_t> q[2];
      std::vector<float> scales[2];
      for (const bool cuda : {false, true}) {
        Guarded<int8_t> store(2 * rows * size);
        Guarded<float> scale(2 * rows);
        memset(store.get(), 5, (size_t)(2 * rows * size));
        memset(scale.get(), 0, sizeof(float) * (size_t)(2 * rows));
        int64_t words[1 + 19] = {0, batch, heads, fresh, size, dtype, room, first};
        for (int i = 0; i < 2; ++i) {
          const int64_t six[] = {word(x.get()), heads * fresh * size, size, heads * size, word(store.get() + i * rows * size), word(scale.get() + i * rows)};
          memcpy(words + 8 + 6 * i, six, sizeof six);
        }
        REQUIRE((cuda ? ts_cuda_int8_append_words(words, 20) : ts_int8_append_words(words + 1, 19)) == TS_OK);
        q[cuda].assign(store.get(), store.get() + store.size());
        scales[cuda].assign(scale.get(), scale.get() + scale.size());
      }
      REQUIRE(q[0] == q[1]);
      for (size_t i = 0; i < scales[0].size(); ++i) REQUIRE(same(scales[0][i], scales[1][i]));
      ++cases;
    }
  }
  printf("append on CUDA: %d caches with the bits of the CPU\n", cases);
}

void rotary() {
  const int64_t rows = 6, size = 10, tables = 3;
  Guarded<float> cos(tables * size), sin(tables * size), q(rows * 3 * size), k(rows * size), q2(rows * 3 * size), k2(rows * size);
  for (int64_t i = 0; i < tables * size; ++i) cos[i] = real(-1, 1), sin[i] = real(-1, 1);
  for (int64_t i = 0; i < rows * 3 * size; ++i) q[i] = q2[i] = real(-3, 3);
  for (int64_t i = 0; i < rows * size; ++i) k[i] = k2[i] = real(-3, 3);
  int64_t words[] = {0, word(q.get()), word(k.get()), rows, 3, 1, 3 * size, size, size, word(cos.get()), word(sin.get()), tables};
  REQUIRE(ts_rotary_words(words + 1, 11) == TS_OK);
  words[1] = word(q2.get()), words[2] = word(k2.get());
  REQUIRE(ts_cuda_rotary_words(words, 12) == TS_OK);
  for (int64_t i = 0; i < rows * 3 * size; ++i) REQUIRE(same(q[i], q2[i]));
  for (int64_t i = 0; i < rows * size; ++i) REQUIRE(same(k[i], k2[i]));
  words[8] = 3;
  REQUIRE(ts_cuda_rotary_words(words, 12) == TS_INVALID);
  puts("rotary on CUDA: turned as on the CPU");
}

void refusals() {
  ts_int8_args args = {};
  REQUIRE(ts_cuda_int8_linears(nullptr, nullptr, 0, nullptr) == TS_INVALID);
  args.k = TS_MAX_K + 1;
  REQUIRE(ts_cuda_int8_linears(&args, nullptr, 0, nullptr) == TS_INVALID && strstr(ts_cuda_last_error(), "overflow"));
  const float x[16] = {};
  alignas(16) int8_t weight[16 * 16 + 1] = {};
  float scale = 1, out;
  int32_t sum = 0;
  ts_int8_layer layer = {};
  layer.weight = weight + 1;
  layer.scale = &scale;
  layer.sum = &sum;
  layer.out = &out;
  layer.n = layer.out_stride = 1;
  args.k = args.row_stride = 16;
  args.rows = 1;
  args.x = x;
  args.layers = &layer;
  args.layer_count = 1;
  REQUIRE(ts_cuda_int8_linears(&args, nullptr, 0, nullptr) == TS_INVALID && strstr(ts_cuda_last_error(), "aligned"));
  layer.weight = weight;
  REQUIRE(ts_cuda_int8_linears(&args, nullptr, 0, nullptr) == TS_INVALID && strstr(ts_cuda_last_error(), "workspace"));
  const int64_t words[4] = {};
  REQUIRE(ts_cuda_int8_linears_words(words, 4) == TS_INVALID && strstr(ts_cuda_last_error(), "words"));
  puts("refusals on CUDA: wrong arguments give codes and messages");
}

}  // namespace

int main() {
  REQUIRE(ts_cuda_abi_version() == TS_ABI_VERSION);
  attention();
  append();
  rotary();
  refusals();
  rows();
  shapes();
  fused();
  puts("all int8 checks of the CUDA kernels passed");
  return 0;
}
