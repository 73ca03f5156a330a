// The watermark of Kirchenbauer et al. (2023): a part of the vocabulary that depends on the ids before is made likelier.
#include <float.h>
#include <math.h>

#include "chain_row.h"
#include "green.h"

const char *ts_watermark_fault(const ts_step &step, int64_t batch) {
  if (step.amounts) return "takes no amounts";
  if (!step.ids && batch) return "ids are missing";
  if (step.width != 2) return "ids must be a key and a number of ids before";
  const int64_t *ids = (const int64_t *)step.ids;
  for (int64_t row = 0; row < (step.ids_stride ? batch : batch ? 1 : 0); ++row) {
    if (ids[row * step.ids_stride + 1] < 1) return "the number of ids before must be 1 or more";
  }
  return nullptr;
}

void ChainRow::watermark(const ts_step &step, float delta) {
  const int64_t *ids = (const int64_t *)step.ids + row_ * step.ids_stride, key = ids[0], context = ids[1];
  const int64_t length = args_->history_lengths ? args_->history_lengths[row_] : args_->history_width;
  if (length < context) return;
  const int64_t *before = args_->history + row_ * args_->history_width + length - context;
  const uint64_t stream = ts_watermark_stream(key, before, context);
  const uint64_t bound = ts_green_bound(step.second[row_ * step.second_stride]);
  if (form_ != kDense && !processed_asked()) {
    for (int64_t i = 0; i < n_; ++i) {
      if (ts_is_green(key, stream, bound, ids_[i])) z_[i] = z_[i] + delta;
    }
    return;
  }
  uint16_t *bits = green_.at_least((vocab_ + kLanes - 1) / kLanes);
  kernels_->green(key, stream, bound, vocab_, bits);
  const auto is_green = [bits](int64_t id) { return bits[id / kLanes] >> (id % kLanes) & 1u; };
  // Both values are worked out and one is taken by its bits: which one is nothing to predict.
  const auto marked = [&is_green, delta](float z, int64_t id) {
    const uint32_t mask = 0u - is_green(id);
    return bits_to_float((float_to_bits(z + delta) & mask) | (float_to_bits(z) & ~mask));
  };
  if (processed_asked()) {
    set_apart();
    float *z = apart_z_.get();
    for (int64_t i = 0; i < vocab_; ++i) z[i] = marked(z[i], i);
    for (int64_t i = 0; plan_->patches && i < patches_.size(); ++i) {
      if (is_green(patches_.ids[i])) patches_.processed[i] = patches_.processed[i] + delta;
    }
  }
  list_all();  // every other value changes: there is no dense row any more
  for (int64_t i = 0; i < n_; ++i) z_[i] = marked(z_[i], ids_[i]);
}
