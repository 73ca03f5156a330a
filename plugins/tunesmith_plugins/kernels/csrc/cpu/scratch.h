// Work space of a thread, kept from call to call. Pages that are never touched cost nothing, so buffers have the size
// of the worst case.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <new>

// Grows only; what it held is lost when it grows.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;
  ~Buffer() { free(data_); }
  T *at_least(int64_t n) {
    if (n > size_) {
      free(data_);
      size_ = 0;
      data_ = (T *)calloc((size_t)n + 64, sizeof(T));
      if (!data_) throw std::bad_alloc();
      size_ = n;
    }
    return data_;
  }
  T &operator[](int64_t i) { return data_[i]; }
  T *get() { return data_; }

 private:
  T *data_ = nullptr;
  int64_t size_ = 0;
};
