// Large int8 products by cublasLt, which is looked for when first wanted: torch has it loaded already. Nothing here needs
// its header; tests/cublaslt_header.cpp compares cublaslt.h with it where it is at hand.
#include <atomic>
#include <mutex>

#include "cublaslt.h"
#include "int8.h"

#if !defined(_WIN32)
#include <dlfcn.h>
#endif

namespace {

struct Functions {
  TsLtCreate create;
  TsLtDescCreate desc_create;
  TsLtDescSet desc_set;
  TsLtDestroy desc_destroy;
  TsLtLayoutCreate layout_create;
  TsLtDestroy layout_destroy;
  TsLtMatmul matmul;
};

#if defined(TS_CUBLASLT_NAME)
const char *const kNames[] = {TS_CUBLASLT_NAME};
#else
const char *const kNames[] = {"libcublasLt.so.13", "libcublasLt.so.12"};
#endif

#if defined(_WIN32)
bool find(Functions *) { return false; }
#else
bool find(Functions *f) {
  void *library = nullptr;
  for (const char *name : kNames)  // one that is loaded goes with the CUDA of this process
    if (!library) library = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
  for (const char *name : kNames)
    if (!library) library = dlopen(name, RTLD_LAZY | RTLD_LOCAL);
  if (!library) return false;
  const auto get = [library](auto *function, const char *name) { return (*function = (decltype(+*function))dlsym(library, name)) != nullptr; };
  return get(&f->create, "cublasLtCreate") && get(&f->desc_create, "cublasLtMatmulDescCreate") &&
         get(&f->desc_set, "cublasLtMatmulDescSetAttribute") && get(&f->desc_destroy, "cublasLtMatmulDescDestroy") &&
         get(&f->layout_create, "cublasLtMatrixLayoutCreate") && get(&f->layout_destroy, "cublasLtMatrixLayoutDestroy") &&
         get(&f->matmul, "cublasLtMatmul");
}
#endif

const Functions *functions() {
  static Functions found;
  static const bool there = find(&found);
  return there ? &found : nullptr;
}

std::atomic<int> wanted{1};

constexpr int kDevices = 64;

// A handle belongs to the device it was made on; it may be used by several threads.
void *handle_here(const Functions &f) {
  static std::mutex mutex;
  static void *handles[kDevices] = {};
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device < 0 || device >= kDevices) return nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  if (!handles[device] && f.create(&handles[device]) != 0) handles[device] = nullptr;
  return handles[device];
}

}  // namespace

bool ts_cublaslt_ready() { return wanted.load(std::memory_order_relaxed) && functions(); }

extern "C" int32_t ts_cuda_cublaslt(int32_t use) {
  if (use == 0 || use == 1) wanted.store(use, std::memory_order_relaxed);
  return ts_cublaslt_ready();
}

// cublasLt sees columns: sums (channels, rows) = weight^T (channels, k) * q (k, rows), the one form it has for int8.
bool ts_cublaslt_product(const int8_t *q, int64_t rows, const int8_t *weight, int64_t channels, int64_t k, int32_t *sums, void *stream) {
  const Functions *f = functions();
  void *handle = f ? handle_here(*f) : nullptr;
  if (!handle) return false;
  void *desc = nullptr, *left = nullptr, *right = nullptr, *result = nullptr;
  const int32_t one = 1, none = 0, transposed = kLtTransposed;
  const bool done = f->desc_create(&desc, kLtCompute32I, kLtInt32) == 0 && f->desc_set(desc, kLtTransposeA, &transposed, sizeof transposed) == 0 &&
                    f->layout_create(&left, kLtInt8, (uint64_t)k, (uint64_t)channels, k) == 0 &&
                    f->layout_create(&right, kLtInt8, (uint64_t)k, (uint64_t)rows, k) == 0 &&
                    f->layout_create(&result, kLtInt32, (uint64_t)channels, (uint64_t)rows, channels) == 0 &&
                    f->matmul(handle, desc, &one, weight, left, q, right, &none, sums, result, sums, result, nullptr, nullptr, 0, stream) == 0;
  for (void *layout : {left, right, result})
    if (layout) f->layout_destroy(layout);
  if (desc) f->desc_destroy(desc);
  return done;
}
