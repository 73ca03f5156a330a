// The sampling chain on a CUDA device, one block a row: the meaning of cpu/chain_row.cpp with the same bits.
#if !defined(TS_THREADS)
#define TS_THREADS 1024
#endif
#include "sampling_check.h"
#include "sampling_mirostat.h"
#include "sampling_temperature.h"
#include "sampling_tops.h"
#include "sampling_watermark.h"

namespace {

constexpr int kMaxSteps = 32;
constexpr int32_t kLastStep = TS_MIROSTAT;  // operations above it have no kernel here

struct Steps {
  ts_step step[kMaxSteps];
};

__device__ bool is_removal(int32_t op) { return op >= TS_BAN && op <= TS_MASK; }

__device__ void truncate(Row &row, int32_t op, double value, const double *second) {
  switch (op) {
    case TS_TOP_K:
      return top_k(row, value);
    case TS_TOP_P:
      return top_p(row, value);
    case TS_MIN_P:
      return min_p(row, value);
    case TS_EPSILON:
      return epsilon(row, value);
    case TS_ETA:
      return eta(row, value);
    case TS_TOP_A:
      return top_a(row, value);
    case TS_TOP_N_SIGMA:
      return top_n_sigma(row, value);
    case TS_TYPICAL:
      return typical(row, value, second[0]);
    case TS_TOP_H:
      return top_h(row, value, second[0]);
    case TS_XTC:
      if (second[0] != 0) xtc(row, value);
      return;
    case TS_TOP_K_LOW:
      return top_k_low(row, value);
    case TS_TOP_P_TIES:
      return top_p_ties(row, value, second);
    case TS_MIROSTAT:
      return mirostat(row, value, second[0]);
    default:  // refused before
      return;
  }
}

// One step of a row, and of the same row without truncations, if that is asked for; truncated: whether a step before may have dropped something.
__device__ void run_step(const ts_sample_args &a, const ts_step &step, int64_t index, Row &row, Row &processed, bool truncated,
                         uint32_t *marks) {
  const double value = ts_step_value(step, index);
  const double *second = step.second ? step.second + index * step.second_stride : nullptr;
  if (step.op == TS_TEMPERATURE) {
    divide(row, (float)value);
    if (processed.z) divide(processed, (float)value);
    return;
  }
  if (step.op == TS_DYNAMIC_TEMPERATURE)
    return dynamic_temperature(row, processed, truncated && (a.logp_processed || a.top_processed_ids), value, second);
  if (!ts_is_edit(step.op) && !is_removal(step.op)) return truncate(row, step.op, value, second);
  if (is_removal(step.op) && value == 0) return;
  if (step.op == TS_MASK) return mask(row, (const int32_t *)step.ids + index * step.ids_stride, step.width);
  Listed listed = {a.history + index * a.history_width, nullptr,
                   a.history_lengths ? a.history_lengths[index] : a.history_width};
  if (step.op == TS_WATERMARK)
    return watermark(row, processed, (const int64_t *)step.ids + index * step.ids_stride, listed.ids, listed.length, second[0], (float)value);
  if (step.ids) {
    listed.ids = (const int64_t *)step.ids + index * step.ids_stride;
    listed.amounts = step.amounts ? step.amounts + index * step.amounts_stride : nullptr;
    listed.length = step.width;
  }
  if (is_removal(step.op)) return remove(row, step.op == TS_BAN, listed, marks);
  edit(row, step.op, listed, value, marks);
  if (processed.z) edit(processed, step.op, listed, value, marks);
}

// Reads a row, divided, and takes the bounds of what was read; returns whether it has a NaN.
template <int D>
__device__ TS_NOINLINE bool read_row(const void *source, float divisor, Row &row) {
  constexpr int kAhead = 8;
  const int n = (int)row.vocab;
  uint64_t nans = 0;
  float best = -infinity(), least = infinity();
  for (int begin = (int)threadIdx.x; begin < n; begin += kAhead * kThreads) {
    float some[kAhead];
    TS_UNROLL(8)
    for (int u = 0; u < kAhead; ++u) {
      if (begin + u * kThreads < n) some[u] = load_one(source, begin + u * kThreads, D);
    }
    TS_UNROLL(8)
    for (int u = 0; u < kAhead; ++u) {
      if (begin + u * kThreads >= n) break;
      const float x = some[u];
      nans += x != x;
      best = x > best ? x : best;
      if (x > -infinity()) least = x < least ? x : least;
      row.z[begin + u * kThreads] = x / divisor;
    }
  }
  row.bounds(best, least);
  return block_sum(nans) != 0;
}

__device__ bool load_row(const void *source, int32_t dtype, float divisor, Row &row) {
  if (dtype == TS_F32) return read_row<TS_F32>(source, divisor, row);
  return dtype == TS_BF16 ? read_row<TS_BF16>(source, divisor, row) : read_row<TS_F16>(source, divisor, row);
}

// Few tokens are left after most truncations.
__device__ TS_NOINLINE void shorten(Row &row) {
  if (row.ids || !row.may_list || row.finite() > kListed) return;
  become_list(row, 0, list_items(row, [](float value) { return value > -infinity(); }));
}

// The last thing that is done with a row: `processed` is overwritten.
__device__ TS_NOINLINE void tops(const ts_sample_args &a, int64_t index, bool good, Row &row, Row &processed, const void *source) {
  const int64_t count = a.top_count < a.vocab ? a.top_count : a.vocab, at = index * count;
  int64_t *const ids[] = {a.top_truncated_ids, a.top_processed_ids, a.top_raw_ids};
  float *const logps[] = {a.top_truncated, a.top_processed, a.top_raw};
  for (int which = 0; which < 3; ++which) {
    if (!ids[which]) continue;
    if (!good) {
      no_tops(count, ids[which] + at, logps[which] + at);
      continue;
    }
    if (which == 2) load_row(source, a.dtype, 1, processed);
    tops_of(which == 0 ? row : processed, count, ids[which] + at, logps[which] + at);
  }
}

// Whether the steps from one on neither change single values nor bring others back, so that what is dropped may be forgotten.
__device__ bool only_drops(const ts_sample_args &a, const Steps &steps, int64_t from) {
  if (a.out_logits || a.top_truncated_ids) return false;
  for (int64_t s = from; s < a.step_count; ++s) {
    const int32_t op = steps.step[s].op;
    if (is_removal(op) || (ts_is_edit(op) && op != TS_TEMPERATURE && op != TS_DYNAMIC_TEMPERATURE)) return false;
  }
  return true;
}

// A temperature at the begin is part of reading, unless the row as given is asked for.
__device__ bool begins_with_temperature(const ts_sample_args &a, const Steps &steps) {
  return a.step_count && steps.step[0].op == TS_TEMPERATURE && !a.logp_raw;
}

__global__ void TS_BOUNDS(kThreads) sample_rows(TS_PARAMETER ts_sample_args a, TS_PARAMETER Steps steps, float *all_z, float *all_processed, uint32_t *all_marks, int64_t stride, int32_t *refusals) {
  const int64_t index = blockIdx.x;
  const char *source = (const char *)a.logits + index * a.row_stride * (a.dtype == TS_F32 ? 4 : 2);
  uint32_t *marks = all_marks + index * ((a.vocab + 31) / 32);
  Row row = {all_z + index * stride, a.vocab, bits_to_double((uint64_t)(1023 + ts_weight_bits(a.vocab)) << 52)};
  Row processed = row;
  processed.z = all_processed + index * stride;
  const bool apart = a.logp_processed || a.top_processed_ids;
  uint8_t status = refused(a, steps.step, index) ? kRefused : (uint8_t)TS_ROW_OK;
  uint64_t raw_total = 0;
  float raw_max = 0;
  int64_t s = 0;
  if (status == TS_ROW_OK) {
    float divisor = 1;
    if (begins_with_temperature(a, steps)) {
      divisor = (float)ts_step_value(steps.step[0], index);
      s = 1;
    }
    if (load_row(source, a.dtype, divisor, row)) status = TS_ROW_NAN;
    else if (row.max == infinity()) status = TS_ROW_POSINF;
    else if (row.max == -infinity()) status = TS_ROW_EMPTY;
    raw_max = row.max;
    if (a.logp_raw && status == TS_ROW_OK) raw_total = row.total();
    row.max = row.max / divisor;
    row.floor = row.floor / divisor;
    row.lowest = row.lowest / divisor;
    if (status == TS_ROW_OK && row.max == infinity()) status = TS_ROW_POSINF;
    if (status == TS_ROW_OK && row.max == -infinity()) status = TS_ROW_EMPTY;
    if (apart && status == TS_ROW_OK) load_row(source, a.dtype, divisor, processed);
  }
  Row other = processed;
  if (!apart) other.z = nullptr;
  bool truncated = false;
  for (; s < a.step_count && status == TS_ROW_OK; ++s) {
    const int32_t op = steps.step[s].op;
    const bool dropping = !ts_is_edit(op) && !is_removal(op);
    row.may_list = dropping && only_drops(a, steps, s + 1);
    run_step(a, steps.step[s], index, row, other, truncated, marks);
    truncated |= !ts_is_edit(op);
    if (dropping && op != TS_TOP_K && op != TS_TOP_P) shorten(row);
    if (dropping) continue;
    if (op != TS_TEMPERATURE && op != TS_DYNAMIC_TEMPERATURE) row.look();
    if (row.max == infinity()) status = TS_ROW_POSINF;
    if (row.max == -infinity()) status = TS_ROW_EMPTY;
  }
  const bool good = status == TS_ROW_OK;
  if (a.out_logits) {
    for (int64_t i = threadIdx.x; i < a.vocab; i += kThreads)
      a.out_logits[index * a.vocab + i] = good ? row.z[i] : not_a_number();
  }
  if (threadIdx.x == 0) a.status[index] = status;
  if (threadIdx.x == 0 && status == kRefused) *refusals = 1;
  if (!a.token) return;
  int64_t place = -1;
  if (good)
    place = a.greedy ? row.first_maximum()
                     : row.draw(ts_uniform_bits(a.seed[index], a.stream[index], a.position[index], a.draw));
  const int64_t token = good ? row.id(place) : -1;
  if (threadIdx.x == 0) a.token[index] = token;
  uint64_t truncated_total = 0, processed_total = 0;
  if (good && a.logp_truncated) truncated_total = row.total();
  if (good && apart) {
    other.look();
    if (a.logp_processed && other.max < infinity()) processed_total = other.total();
  }
  if (threadIdx.x == 0) {
    const float nan = not_a_number();
    Row raw = row;
    raw.max = raw_max;
    if (a.logp_raw) a.logp_raw[index] = good ? raw.logp(load_one(source, token, a.dtype), raw_total) : nan;
    if (a.logp_processed)
      a.logp_processed[index] = good && other.max < infinity() ? other.logp(other.z[token], processed_total) : nan;
    if (a.logp_truncated) a.logp_truncated[index] = good ? row.logp(row.z[place], truncated_total) : nan;
  }
  __syncthreads();
  if (!a.top_count) return;
  if (!apart) other = processed;
  tops(a, index, good, row, other, source);
}

// What is wrong with the arguments; what lies on the device is the caller's to check.
int32_t check(const ts_sample_args &a) {
  if (a.step_count > kMaxSteps) return ts_cuda_fail(TS_INVALID, "more than %d steps in a chain on a CUDA device", kMaxSteps);
  if (a.step_count < 0 || (a.step_count && !a.steps)) return ts_cuda_fail(TS_INVALID, "steps must not be null");
  if (a.batch < 0 || a.vocab < 1 || a.vocab > INT32_MAX || a.dtype < TS_F32 || a.dtype > TS_F16)
    return ts_cuda_fail(TS_INVALID, "logits must be (batch, vocab) float32, bfloat16 or float16");
  if (a.top_count < 0 || (a.top_count && !a.token))
    return ts_cuda_fail(TS_INVALID, "the likeliest tokens come with a draw: top_count must not be negative, token not null");
  if (!a.top_raw_ids != !a.top_raw || !a.top_processed_ids != !a.top_processed || !a.top_truncated_ids != !a.top_truncated)
    return ts_cuda_fail(TS_INVALID, "ids and log-probabilities of the likeliest tokens come together");
  if (a.draw < 0 || a.draw > UINT32_MAX) return ts_cuda_fail(TS_INVALID, "draw must be in [0, 2^32)");
  if (a.batch == 0) return TS_OK;
  if (!a.logits || !a.status || !a.workspace || (a.token && !a.greedy && (!a.seed || !a.stream || !a.position)))
    return ts_cuda_fail(TS_INVALID, "logits, status, workspace and, to draw, seed, stream and position must not be null");
  for (int64_t s = 0; s < a.step_count; ++s) {
    const int32_t op = a.steps[s].op;
    if (op < 0 || op > kLastStep)
      return ts_cuda_fail(TS_UNSUPPORTED, "step %lld: unknown operation %d", (long long)s, (int)op);
    if ((ts_needs_history(a.steps[s]) || op == TS_WATERMARK) && a.history_width > 0 && !a.history)
      return ts_cuda_fail(TS_INVALID, "step %lld: history is missing", (long long)s);
    if (((op >= TS_BIAS && op <= TS_MASK) || op == TS_WATERMARK) && !a.steps[s].ids)
      return ts_cuda_fail(TS_INVALID, "step %lld: ids are missing", (long long)s);
    if (op == TS_WATERMARK && a.steps[s].width != 2)
      return ts_cuda_fail(TS_INVALID, "step %lld: ids must be a key and a number of ids before", (long long)s);
    if (ts_seconds(op) && !a.steps[s].second)
      return ts_cuda_fail(TS_INVALID, "step %lld: the second parameter is missing", (long long)s);
  }
  return TS_OK;
}

int64_t row_stride(int64_t vocab) { return (vocab + 3) / 4 * 4; }

// Where a device says that it refused a row: memory of the host that it can write to.
class Refusals {
 public:
  // Null if there is no such memory.
  int32_t *clear() {
    if (!word_ && cudaHostAlloc((void **)&word_, sizeof *word_, cudaHostAllocPortable | cudaHostAllocMapped) != cudaSuccess) word_ = nullptr;
    if (word_) *word_ = 0;
    return word_;
  }
  ~Refusals() {
    if (word_) cudaFreeHost(word_);
  }

 private:
  int32_t *word_ = nullptr;
};

}  // namespace

extern "C" int64_t ts_cuda_sample_workspace(int64_t batch, int64_t vocab, int64_t) {
  return batch * (2 * row_stride(vocab) + (vocab + 31) / 32) * 4;
}

extern "C" int32_t ts_cuda_sample(const ts_sample_args *args) {
  if (!args) return ts_cuda_fail(TS_INVALID, "no arguments");
  const ts_sample_args &a = *args;
  const int32_t checked = check(a);
  if (checked != TS_OK || a.batch == 0) return checked;
  Steps steps = {};
  for (int64_t s = 0; s < a.step_count; ++s) steps.step[s] = a.steps[s];
  const int64_t stride = row_stride(a.vocab);
  float *z = (float *)a.workspace, *processed = z + a.batch * stride;
  uint32_t *marks = (uint32_t *)(processed + a.batch * stride);
  static thread_local Refusals refusals;
  volatile int32_t *refused = refusals.clear();
  if (!refused) return ts_cuda_fail(TS_INTERNAL, "CUDA: %s", cudaGetErrorString(cudaGetLastError()));
  TS_LAUNCH(sample_rows, (unsigned)a.batch, a.cuda_stream, a, steps, z, processed, marks, stride, (int32_t *)refused);
  const int32_t launched = ts_cuda_launched();
  if (launched != TS_OK) return launched;
  const cudaError_t code = cudaStreamSynchronize((cudaStream_t)a.cuda_stream);
  if (code != cudaSuccess) return ts_cuda_fail(TS_INTERNAL, "CUDA: %s", cudaGetErrorString(code));
  return *refused ? ts_cuda_fail(TS_INVALID, "a parameter of a row is outside its range") : (int32_t)TS_OK;
}
