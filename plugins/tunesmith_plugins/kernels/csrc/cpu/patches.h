// The tokens of a row that have a value of their own: those that a penalty or a bias touches. The caller's logits are
// never written; instead such tokens are marked, passed over by the loops over the row, and kept here.
#pragma once

#include <vector>

#include "sampling.h"
#include "scratch.h"

struct Patch {
  int32_t id;
  float raw;        // as given
  float z;          // after the edits before the first truncation
  float processed;  // after all edits and no truncation
  float sum;        // of its amounts in the step at work
  int32_t stamp;    // the last step that named it
};

class Patches {
 public:
  // Makes room for a row; nothing is patched.
  void begin(int64_t vocab) {
    clear();  // a row that ran out of memory has left its marks
    marks_.at_least((vocab + kBlock - 1) / kBlock * kBlockGroups);
    flagged_.at_least((vocab + kBlock - 1) / kBlock);
  }
  // Unmarks everything: marks are clear between rows.
  void clear() {
    for (const Patch &patch : list) {
      marks_[patch.id / kLanes] = 0;
      flagged_[patch.id / kBlock] = 0;
    }
    list.clear();
    used_ = 0;
  }
  bool marked(int32_t id) { return marks_[id / kLanes] >> (id % kLanes) & 1; }
  // The patch of a token, or null.
  Patch *find(int32_t id) {
    if (list.empty() || !marked(id)) return nullptr;
    for (uint32_t slot = place(id);; slot = (slot + 1) & mask_) {
      if (slots_[slot] && list[slots_[slot] - 1].id == id) return &list[slots_[slot] - 1];
    }
  }
  // Makes room for so many tokens in all.
  void reserve(int64_t count) {
    uint32_t size = 64;
    while (size < 2 * count) size *= 2;
    slots_.at_least(size);
    memset(slots_.get(), 0, size * sizeof(uint32_t));
    mask_ = size - 1;
    list.reserve((size_t)count);
  }
  // Adds a token that is not marked yet, its values to be set; reserve() must have allowed for it.
  void add(int32_t id) {
    list.push_back({id, 0, 0, 0, 0, 0});
    marks_[id / kLanes] = (uint16_t)(marks_[id / kLanes] | 1u << (id % kLanes));
    flagged_[id / kBlock] = 1;
    uint32_t slot = place(id);
    while (slots_[slot]) slot = (slot + 1) & mask_;
    slots_[slot] = (uint32_t)++used_;
  }
  const uint16_t *marks() { return list.empty() ? nullptr : marks_.get(); }
  const uint8_t *flagged() { return flagged_.get(); }

  std::vector<Patch> list;

 private:
  uint32_t place(int32_t id) const { return ((uint32_t)id * 0x9E3779B1u >> 7) & mask_; }

  Buffer<uint16_t> marks_;
  Buffer<uint8_t> flagged_;
  Buffer<uint32_t> slots_;  // one more than an index of list, by a hash of the id; 0 is empty
  uint32_t mask_ = 0, used_ = 0;
};
