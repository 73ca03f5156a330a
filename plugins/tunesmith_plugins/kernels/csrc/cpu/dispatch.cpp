// Messages, version and the choice of instruction set.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <string>

#include "error.h"
#include "isa.h"

#if defined(_MSC_VER) && (defined(_M_X64) || defined(_M_IX86))
#include <immintrin.h>
#include <intrin.h>
#endif

namespace {

thread_local char message[512] = "";

struct Entry {
  const TsKernels *kernels;
  bool available;
};

#if defined(TS_HAVE_AVX2)
bool cpu_has_avx2() {
#if defined(_MSC_VER)
  int info[4];
  __cpuid(info, 1);
  const bool os_saves_ymm = (info[2] & (1 << 27)) && (info[2] & (1 << 28)) && (_xgetbv(0) & 6) == 6;
  __cpuidex(info, 7, 0);
  return os_saves_ymm && (info[1] & (1 << 5));
#else
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("popcnt");
#endif
}
#endif

#if defined(TS_HAVE_AVX512)
bool cpu_has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}
#endif

// Slowest first.
const Entry *entries(int *count) {
  static const Entry table[] = {
      {&ts_kernels_scalar, true},
#if defined(TS_HAVE_AVX2)
      {&ts_kernels_avx2, cpu_has_avx2()},
#endif
#if defined(TS_HAVE_AVX512)
      {&ts_kernels_avx512, cpu_has_avx512()},
#endif
  };
  *count = (int)(sizeof table / sizeof table[0]);
  return table;
}

const TsKernels *find(const char *name) {
  int count;
  const Entry *table = entries(&count);
  for (int i = 0; i < count; ++i) {
    if (table[i].available && strcmp(table[i].kernels->name, name) == 0) return table[i].kernels;
  }
  ts_fail(TS_UNSUPPORTED, "instruction set '%.40s' is not available here; choose one of: %s", name, ts_isa_available());
  return nullptr;
}

std::atomic<const TsKernels *> chosen{nullptr};

}  // namespace

int32_t ts_fail(int32_t code, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return code;
}

const TsKernels *ts_kernels() {
  const TsKernels *kernels = chosen.load(std::memory_order_acquire);
  if (kernels) return kernels;
  const char *forced = getenv("TUNESMITH_ISA");
  if (forced && *forced) {
    kernels = find(forced);
  } else {
    int count;
    const Entry *table = entries(&count);
    for (int i = 0; i < count; ++i) {
      if (table[i].available) kernels = table[i].kernels;
    }
  }
  if (kernels) chosen.store(kernels, std::memory_order_release);
  return kernels;
}

extern "C" {

int32_t ts_abi_version(void) { return TS_ABI_VERSION; }

const char *ts_last_error(void) { return message; }

const char *ts_isa_available(void) {
  static const std::string names = [] {
    std::string list;
    int count;
    const Entry *table = entries(&count);
    for (int i = 0; i < count; ++i) {
      if (table[i].available) list += (list.empty() ? "" : ",") + std::string(table[i].kernels->name);
    }
    return list;
  }();
  return names.c_str();
}

const char *ts_isa_current(void) {
  const TsKernels *kernels = ts_kernels();
  return kernels ? kernels->name : nullptr;
}

int32_t ts_isa_set(const char *name) {
  const TsKernels *kernels = name ? find(name) : nullptr;
  if (!kernels) return name ? TS_UNSUPPORTED : ts_fail(TS_INVALID, "no instruction set named");
  chosen.store(kernels, std::memory_order_release);
  return TS_OK;
}

}  // extern "C"
