// The parts of DLPack 1.x that a sampling call uses: the layout of its structs and of the table of functions that a tensor
// class offers as __dlpack_c_exchange_api__. Through it a tensor is read without a single attribute of Python.
#pragma once

#include <stdint.h>

namespace {

constexpr uint32_t kMajor = 1, kMinor = 1;  // a table of another major version is not used
constexpr int32_t kHostMemory = 1;
enum : uint8_t { kCodeInteger = 0, kCodeUnsigned = 1, kCodeFloat = 2, kCodeBfloat = 4 };

// DLTensor.
struct Borrowed {
  void *data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;  // strides count elements
  uint64_t byte_offset;
};

// DLManagedTensorVersioned.
struct Managed {
  struct {
    uint32_t major, minor;
  } version;
  void *context;
  void (*release)(Managed *);
  uint64_t flags;
  Borrowed tensor;
};

// DLPackExchangeAPI; functions return 0, or -1 with an exception set.
struct Exchange {
  uint32_t major, minor;
  const void *older;
  void *allocate;
  void *own;
  int (*to_python)(Managed *, void **object);  // takes the tensor over unless it fails
  int (*borrow)(void *object, Borrowed *);     // valid as long as the object is held and not changed; may be null
  void *stream;
};

static_assert(sizeof(void *) != 8 || (sizeof(Borrowed) == 48 && sizeof(Managed) == 80 && sizeof(Exchange) == 56),
              "the layout of DLPack");

}  // namespace
