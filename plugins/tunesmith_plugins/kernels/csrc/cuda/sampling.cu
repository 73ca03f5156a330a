// The sampling chain on a CUDA device, one block a row: the algorithm of cpu/sampling.cpp with the same bits.
#include "block.h"
#include "edits.h"

namespace {

constexpr int kMaxSteps = 16;

struct Steps {
  ts_step step[kMaxSteps];
};

__device__ float infinity() { return bits_to_float(0x7f800000u); }
__device__ float not_a_number() { return bits_to_float(0x7fc00000u); }

__device__ bool is_edit(int32_t op) {
  return op == TS_REPETITION_PENALTY || op == TS_TEMPERATURE || (op >= TS_PRESENCE_PENALTY && op <= TS_LENGTH_DECAY);
}
__device__ bool is_removal(int32_t op) { return op >= TS_BAN && op <= TS_MASK; }

// The tokens that a step names in a row.
struct Listed {
  const int64_t *ids;
  const float *amounts;
  int64_t length;
};

__device__ double step_value(const ts_step &step, int64_t row) {
  const int64_t at = row * step.stride;
  return step.dtype == TS_I64 ? (double)((const int64_t *)step.values)[at] : ((const double *)step.values)[at];
}

struct Row {
  float *z;
  int64_t vocab;
  double scale;
  float max;

  __device__ uint64_t weight(int64_t i) const { return ts_weight(ts_exp(z[i] - max), scale); }

  __device__ float maximum() const {
    float best = -infinity();
    for (int64_t i = threadIdx.x; i < vocab; i += kThreads) best = z[i] > best ? z[i] : best;
    return block_max(best);
  }

  __device__ uint64_t total() const {
    uint64_t sum = 0;
    for (int64_t i = threadIdx.x; i < vocab; i += kThreads) sum += weight(i);
    return block_sum(sum);
  }

  __device__ void divide(float divisor) const {
    for (int64_t i = threadIdx.x; i < vocab; i += kThreads) z[i] = z[i] / divisor;
    __syncthreads();
  }

  __device__ void edit(int32_t op, const Listed &listed, double value, uint32_t *marks) const {
    for (int64_t i = threadIdx.x; i < (vocab + 31) / 32; i += kThreads) marks[i] = 0;
    __syncthreads();
    for (int64_t j = threadIdx.x; j < listed.length; j += kThreads) {
      const int64_t id = listed.ids[j];
      if (id < 0 || id >= vocab) continue;
      const uint32_t bit = 1u << (id % 32);
      if (atomicOr(marks + id / 32, bit) & bit) continue;  // another thread has this token
      float sum = 0;
      if (op == TS_FREQUENCY_PENALTY || op == TS_BIAS) {
        for (int64_t i = 0; i < listed.length; ++i) {
          if (listed.ids[i] == id) sum += listed.amounts ? listed.amounts[i] : 1.0f;
        }
      }
      z[id] = ts_edited(op, z[id], value, sum);
    }
    __syncthreads();
  }

  // Drops the listed tokens, or all others.
  __device__ void remove(bool ban, const Listed &listed, uint32_t *marks) const {
    for (int64_t i = threadIdx.x; i < (vocab + 31) / 32; i += kThreads) marks[i] = 0;
    __syncthreads();
    for (int64_t j = threadIdx.x; j < listed.length; j += kThreads) {
      const int64_t id = listed.ids[j];
      if (id >= 0 && id < vocab) atomicOr(marks + id / 32, 1u << (id % 32));
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < vocab; i += kThreads) {
      if ((bool)(marks[i / 32] >> (i % 32) & 1) == ban) z[i] = -infinity();
    }
    __syncthreads();
  }

  __device__ void mask(const int32_t *words, int64_t count) const {
    for (int64_t i = threadIdx.x; i < vocab; i += kThreads) {
      if (!ts_allowed(words, count, i)) z[i] = -infinity();
    }
    __syncthreads();
  }

  // See key_beyond in cpu/sampling.cpp; measures tokens by weight or, counting, by one each.
  __device__ uint32_t key_beyond(uint64_t limit, bool counting, uint64_t *below) const {
    __shared__ unsigned long long buckets[2048];
    __shared__ uint32_t found;
    __shared__ uint64_t sum;
    const int shifts[] = {21, 10, 0}, widths[] = {11, 11, 10};
    uint32_t prefix = 0;
    uint64_t running = 0;
    for (int level = 0; level < 3; ++level) {
      const int shift = shifts[level], high = shift + widths[level];
      const uint32_t size = 1u << widths[level];
      for (uint32_t i = threadIdx.x; i < size; i += kThreads) buckets[i] = 0;
      __syncthreads();
      for (int64_t i = threadIdx.x; i < vocab; i += kThreads) {
        const uint32_t key = ts_order_key(z[i]);
        if (level == 0 || key >> high == prefix >> high)
          atomicAdd(buckets + ((key >> shift) & (size - 1)), (unsigned long long)(counting ? 1 : weight(i)));
      }
      __syncthreads();
      if (threadIdx.x == 0) {
        uint32_t bucket = 0;
        while (running + buckets[bucket] <= limit) running += buckets[bucket++];
        found = bucket;
        sum = running;
      }
      __syncthreads();
      prefix |= found << shift;
      running = sum;
      __syncthreads();
    }
    *below = running;
    return prefix;
  }

  // Drops every token below the threshold and the first `ties` tokens, in index order, at it.
  __device__ void drop(uint32_t threshold, uint64_t ties) const {
    const int64_t length = (vocab + kThreads - 1) / kThreads, begin = threadIdx.x * length;
    const int64_t end = begin + length < vocab ? begin + length : vocab;
    uint64_t own = 0;
    for (int64_t i = begin; i < end; ++i) own += ts_order_key(z[i]) == threshold;
    uint64_t rank = block_before(own);
    for (int64_t i = begin; i < end; ++i) {
      const uint32_t key = ts_order_key(z[i]);
      if (key < threshold || (key == threshold && rank++ < ties)) z[i] = -infinity();
    }
    __syncthreads();
  }

  __device__ void top_k(double k) const {
    if (k < 1 || k >= (double)vocab) return;
    uint64_t below;
    drop(key_beyond((uint64_t)(vocab - (int64_t)k), true, &below), 0);
  }

  __device__ void top_p(double p) const {
    if (p >= 1) return;
    const uint64_t all = total(), limit = ts_top_p_limit(p, all);
    uint32_t threshold = ts_order_key(max);
    uint64_t ties = 0;
    if (limit >= all) {
      for (int64_t i = threadIdx.x; i < vocab; i += kThreads) ties += ts_order_key(z[i]) == threshold;
      ties = block_sum(ties) - 1;
    } else {
      uint64_t below;
      threshold = key_beyond(limit, false, &below);
      const float value = key_to_float(threshold);
      ties = (limit - below) / ts_weight(ts_exp(value - max), scale);
    }
    drop(threshold, ties);
  }

  __device__ void min_p(double p) const {
    for (int64_t i = threadIdx.x; i < vocab; i += kThreads) {
      if ((double)ts_exp(z[i] - max) < p) z[i] = -infinity();
    }
    __syncthreads();
  }

  __device__ int64_t first_maximum() const {
    uint64_t first = (uint64_t)vocab;
    for (int64_t i = vocab - 1 - (int64_t)threadIdx.x; i >= 0; i -= kThreads) {
      if (z[i] == max) first = (uint64_t)i;
    }
    return (int64_t)block_least(first);
  }

  __device__ int64_t draw(uint64_t bits) const {
    const uint64_t target = ts_mulhi(bits, total());
    const int64_t length = (vocab + kThreads - 1) / kThreads, begin = threadIdx.x * length;
    const int64_t end = begin + length < vocab ? begin + length : vocab;
    uint64_t own = 0;
    for (int64_t i = begin; i < end; ++i) own += weight(i);
    uint64_t running = block_before(own), token = (uint64_t)vocab;
    if (running <= target && target < running + own) {
      for (int64_t i = begin; i < end; ++i) {
        running += weight(i);
        if (running > target) {
          token = (uint64_t)i;
          break;
        }
      }
    }
    return (int64_t)block_least(token);
  }
};

__global__ void sample_rows(ts_sample_args a, Steps steps, float *all_z, float *all_processed, uint32_t *all_marks) {
  const int64_t index = blockIdx.x;
  const char *source = (const char *)a.logits + index * a.row_stride * (a.dtype == TS_F32 ? 4 : 2);
  Row row = {all_z + index * a.vocab, a.vocab, bits_to_double((uint64_t)(1023 + ts_weight_bits(a.vocab)) << 52), 0};
  Row processed = row;
  processed.z = all_processed + index * a.vocab;
  uint64_t nans = 0;
  for (int64_t i = threadIdx.x; i < a.vocab; i += kThreads) {
    const float x = load_one(source, i, a.dtype);
    nans += x != x;
    row.z[i] = processed.z[i] = x;
  }
  __syncthreads();
  uint8_t status = block_sum(nans) ? TS_ROW_NAN : TS_ROW_OK;
  uint64_t raw_total = 0;
  float raw_max = 0;
  for (int64_t s = -1; s < a.step_count && status == TS_ROW_OK; ++s) {
    if (s >= 0) {
      const ts_step &step = steps.step[s];
      const double value = step_value(step, index);
      uint32_t *marks = all_marks + index * ((a.vocab + 31) / 32);
      Listed listed = {a.history + index * a.history_width, nullptr,
                       a.history_lengths ? a.history_lengths[index] : a.history_width};
      if (step.ids) {
        listed.ids = (const int64_t *)step.ids + index * step.ids_stride;
        listed.amounts = step.amounts ? step.amounts + index * step.amounts_stride : nullptr;
        listed.length = step.width;
      }
      if (step.op != TS_TEMPERATURE && is_edit(step.op)) {
        row.edit(step.op, listed, value, marks);
        processed.edit(step.op, listed, value, marks);
      } else if (is_removal(step.op)) {
        if (value == 0) continue;
        if (step.op == TS_MASK) row.mask((const int32_t *)step.ids + index * step.ids_stride, step.width);
        else row.remove(step.op == TS_BAN, listed, marks);
      } else if (step.op == TS_TEMPERATURE) {
        row.divide((float)value);
        processed.divide((float)value);
      } else if (step.op == TS_TOP_K) {
        row.top_k(value);
      } else if (step.op == TS_TOP_P) {
        row.top_p(value);
      } else {
        row.min_p(value);
      }
    }
    if (s < 0 || is_edit(steps.step[s].op) || is_removal(steps.step[s].op)) {
      row.max = row.maximum();
      if (row.max == infinity()) status = TS_ROW_POSINF;
      if (row.max == -infinity()) status = TS_ROW_EMPTY;
    }
    if (s < 0 && status == TS_ROW_OK && a.logp_raw) {
      raw_total = row.total();
      raw_max = row.max;
    }
  }
  const bool good = status == TS_ROW_OK;
  if (a.out_logits) {
    for (int64_t i = threadIdx.x; i < a.vocab; i += kThreads)
      a.out_logits[index * a.vocab + i] = good ? row.z[i] : not_a_number();
  }
  if (threadIdx.x == 0) a.status[index] = status;
  if (!a.token) return;
  int64_t token = -1;
  if (good)
    token = a.greedy ? row.first_maximum()
                     : row.draw(ts_uniform_bits(a.seed[index], a.stream[index], a.position[index], a.draw));
  if (threadIdx.x == 0) a.token[index] = token;
  uint64_t truncated_total = 0, processed_total = 0;
  if (good && a.logp_truncated) truncated_total = row.total();
  if (good && a.logp_processed) {
    processed.max = processed.maximum();
    if (processed.max < infinity()) processed_total = processed.total();
  }
  if (threadIdx.x != 0) return;
  const float nan = not_a_number();
  if (a.logp_raw)
    a.logp_raw[index] = good ? ts_logp(load_one(source, token, a.dtype), raw_max, raw_total, row.scale) : nan;
  if (a.logp_processed)
    a.logp_processed[index] =
        good && processed.max < infinity() ? ts_logp(processed.z[token], processed.max, processed_total, row.scale) : nan;
  if (a.logp_truncated)
    a.logp_truncated[index] = good ? ts_logp(row.z[token], row.max, truncated_total, row.scale) : nan;
}

}  // namespace

extern "C" int64_t ts_cuda_sample_workspace(int64_t batch, int64_t vocab, int64_t) {
  return batch * (2 * vocab + (vocab + 31) / 32) * 4;
}

extern "C" int32_t ts_cuda_sample(const ts_sample_args *args) {
  if (!args) return ts_cuda_fail(TS_INVALID, "no arguments");
  const ts_sample_args &a = *args;
  if (a.step_count > kMaxSteps) return ts_cuda_fail(TS_INVALID, "more than %d steps in a chain on a CUDA device", kMaxSteps);
  if (a.batch < 0 || a.vocab < 1 || a.vocab > INT32_MAX || a.dtype < TS_F32 || a.dtype > TS_F16)
    return ts_cuda_fail(TS_INVALID, "logits must be (batch, vocab) float32, bfloat16 or float16");
  if (a.top_count) return ts_cuda_fail(TS_UNSUPPORTED, "the likeliest tokens are not given by the CUDA library");
  if (a.batch == 0) return TS_OK;
  if (!a.logits || !a.status || !a.workspace || (a.token && !a.greedy && (!a.seed || !a.stream || !a.position)))
    return ts_cuda_fail(TS_INVALID, "logits, status, workspace and, to draw, seed, stream and position must not be null");
  Steps steps = {};
  for (int64_t s = 0; s < a.step_count; ++s) {
    steps.step[s] = a.steps[s];
    const int32_t op = a.steps[s].op;
    if (op < 0 || op > TS_MASK)
      return ts_cuda_fail(TS_UNSUPPORTED, "step %lld: unknown operation %d", (long long)s, (int)op);
    const bool penalty = op == TS_REPETITION_PENALTY || op == TS_PRESENCE_PENALTY || op == TS_FREQUENCY_PENALTY;
    if (penalty && !a.steps[s].ids && a.history_width > 0 && !a.history)
      return ts_cuda_fail(TS_INVALID, "step %lld: history is missing", (long long)s);
    if (op >= TS_BIAS && op <= TS_MASK && !a.steps[s].ids)
      return ts_cuda_fail(TS_INVALID, "step %lld: ids are missing", (long long)s);
  }
  float *z = (float *)a.workspace, *processed = z + a.batch * a.vocab;
  uint32_t *marks = (uint32_t *)(processed + a.batch * a.vocab);
  TS_LAUNCH(sample_rows, (unsigned)a.batch, a.cuda_stream, a, steps, z, processed, marks);
  return ts_cuda_launched();
}
