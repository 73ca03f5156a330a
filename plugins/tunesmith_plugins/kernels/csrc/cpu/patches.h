// The tokens of a row that have a value of their own: those that a penalty or a bias touches. The caller's logits are
// never written; instead such tokens are marked, passed over by the loops over the row, and kept here.
#pragma once

#include <math.h>

#include <algorithm>

#include "sampling.h"
#include "scratch.h"

class Patches {
 public:
  // Makes room for so many tokens of a row; nothing is patched.
  void begin(int64_t vocab, int64_t most) {
    const int64_t blocks = (vocab + kBlock - 1) / kBlock;
    clear();  // a row that ran out of memory has left its marks
    blocks_ = 0;
    vocab_ = vocab;
    marks_.at_least(blocks * kBlockGroups);
    flagged_.at_least(blocks);
    blocks_ = blocks;
    ids.at_least(most);
    raw.at_least(most);
    z.at_least(most);
    processed.at_least(most);
  }
  // Unmarks everything: marks are clear between rows.
  void clear() {
    for (int64_t i = 0; i < size_; ++i) marks_[ids[i] / kLanes] = 0;
    if (size_) memset(flagged_.get(), 0, (size_t)blocks_);
    size_ = 0;
    indexed_ = false;
  }
  // Adds tokens, their values to be set; those that are there already and those outside the vocabulary are left out.
  void add(const int64_t *named, int64_t count) {
    uint16_t *marks = marks_.get();
    uint8_t *flagged = flagged_.get();
    int32_t *to = ids.get();
    int64_t size = size_;
    for (int64_t j = 0; j < count; ++j) {
      const uint64_t id = (uint64_t)named[j];
      if (id >= (uint64_t)vocab_) continue;
      // Always written, and only the count depends on whether it is new: there is nothing to predict.
      const uint32_t marked = marks[id / kLanes], bit = 1u << (id % kLanes);
      to[size] = (int32_t)id;
      size += (marked & bit) == 0;
      marks[id / kLanes] = (uint16_t)(marked | bit);
      flagged[id / kBlock] = 1;
    }
    size_ = size;
  }
  int64_t size() const { return size_; }
  bool marked(int32_t id) { return marks_[id / kLanes] >> (id % kLanes) & 1; }
  // The place of a token here, or -1.
  int64_t find(int32_t id) {
    if (!size_ || !marked(id)) return -1;
    if (!indexed_) return std::find(ids.get(), ids.get() + size_, id) - ids.get();
    return places_[id];
  }
  // Prepares for finding many.
  void index() {
    if (indexed_) return;
    int32_t *places = places_.at_least(vocab_);
    for (int64_t i = 0; i < size_; ++i) places[ids[i]] = (int32_t)i;
    indexed_ = true;
  }
  // The largest of the values of all patches, one of the arrays below, or -inf.
  float largest(Buffer<float> &values) {
    float most[kLanes], result = -HUGE_VALF;  // side by side, since one comparison waits for the one before
    std::fill_n(most, kLanes, -HUGE_VALF);
    const float *v = values.get();
    int64_t i = 0;
    for (; i + kLanes <= size_; i += kLanes) {
      for (int j = 0; j < kLanes; ++j) most[j] = v[i + j] > most[j] ? v[i + j] : most[j];
    }
    for (; i < size_; ++i) result = v[i] > result ? v[i] : result;
    for (const float each : most) result = each > result ? each : result;
    return result;
  }
  const uint16_t *marks() { return size_ ? marks_.get() : nullptr; }
  const uint8_t *flagged() { return flagged_.get(); }

  Buffer<int32_t> ids;
  Buffer<float> raw;        // as given
  Buffer<float> z;          // after the edits before the first truncation
  Buffer<float> processed;  // after all edits and no truncation; only where somebody asks for the processed row

 private:
  int64_t size_ = 0, vocab_ = 0, blocks_ = 0;
  Buffer<uint16_t> marks_;
  Buffer<uint8_t> flagged_;
  bool indexed_ = false;
  Buffer<int32_t> places_;  // by id, of those that are here: no choice of ids makes them slow to find, as it would in a table of hashes
};
