// Reads memory and does nothing else: what no sampling call can be faster than.
#include <cstdint>
#include <cstring>

// Words: the address and the number of bytes. The code is always 0.
extern "C" int32_t read_words(const int64_t *words, int64_t) {
  constexpr int kSide = 32;      // numbers read together
  constexpr int kAhead = 4096;  // bytes between what is read and what is asked for ahead of time
  const char *data = (const char *)(intptr_t)words[0];
  uint64_t seen[kSide] = {}, block[kSide];
  for (int64_t at = 0; at + (int64_t)sizeof block <= words[1]; at += sizeof block) {
    for (int line = 0; line < (int)sizeof block; line += 64) __builtin_prefetch(data + at + kAhead + line);
    memcpy(block, data + at, sizeof block);
    for (int i = 0; i < kSide; ++i) seen[i] ^= block[i];
  }
  uint64_t all = 0;
  for (uint64_t each : seen) all ^= each;
  volatile uint64_t keep = all;
  (void)keep;
  return 0;
}
