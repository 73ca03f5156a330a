// Messages, version and the choice of instruction set.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <string>

#include "error.h"
#include "int8_kernels.h"
#include "sampling.h"

#if defined(TS_HAVE_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(TS_HAVE_NEONDOT) && defined(__linux__)
#include <sys/auxv.h>
#endif

#if defined(_MSC_VER) && (defined(_M_X64) || defined(_M_IX86))
#include <immintrin.h>
#include <intrin.h>
#endif

namespace {

thread_local char message[512] = "";

struct Entry {
  const char *name;
  const TsSampling *sampling;
  const TsInt8Kernels *int8;
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
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("popcnt");
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

#if defined(TS_HAVE_AVX2)
bool cpu_is_amd() {
#if defined(_MSC_VER) && !defined(__clang__)
  int info[4];
  __cpuid(info, 0);
  return info[1] == 0x68747541 && info[3] == 0x69746e65 && info[2] == 0x444d4163;  // AuthenticAMD
#else
  return __builtin_cpu_is("amd");
#endif
}
#endif

#if defined(TS_HAVE_AMX)
// AMX keeps its registers for a process only after the process has asked for them (Linux 5.16).
bool cpu_has_amx() {
  unsigned a, b, c, d;
  if (!cpu_has_avx512() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kTiles = 1u << 24, kInt8 = 1u << 25;
  if ((d & (kTiles | kInt8)) != (kTiles | kInt8)) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

#if defined(TS_HAVE_NEONDOT)
bool cpu_has_dot() {
#if defined(__APPLE__)
  return true;
#elif defined(__linux__)
  constexpr unsigned long kDot = 1ul << 20;  // HWCAP_ASIMDDP
  return (getauxval(AT_HWCAP) & kDot) != 0;
#else
  return false;
#endif
}
#endif

// Slowest first.
const Entry *entries(int *count) {
  static const Entry table[] = {
      {"scalar", &ts_sampling_scalar, &ts_int8_scalar, true},
#if defined(TS_HAVE_NEON)
      {"neon", &ts_sampling_neon, &ts_int8_neon, true},
#endif
#if defined(TS_HAVE_NEONDOT)
      {"neondot", &ts_sampling_neon, &ts_int8_neondot, cpu_has_dot()},
#endif
#if defined(TS_HAVE_AVX2)
      {"avx2", &ts_sampling_avx2, &ts_int8_avx2, cpu_has_avx2()},
#endif
#if defined(TS_HAVE_AVX512)
      {"avx512", &ts_sampling_avx512, &ts_int8_avx512vnni, cpu_has_avx512()},
#endif
#if defined(TS_HAVE_AMX)
      {"amx", &ts_sampling_avx512, &ts_int8_amx, cpu_has_amx()},
#endif
  };
  *count = (int)(sizeof table / sizeof table[0]);
  return table;
}

const Entry *find(const char *name) {
  int count;
  const Entry *table = entries(&count);
  for (int i = 0; i < count; ++i) {
    if (table[i].available && strcmp(table[i].name, name) == 0) return &table[i];
  }
  ts_fail(TS_UNSUPPORTED, "instruction set '%.40s' is not available here; choose one of: %s", name, ts_isa_available());
  return nullptr;
}

std::atomic<const Entry *> chosen{nullptr};

// Chosen once: TUNESMITH_ISA if set, else the best available; null with a message if that cannot be had.
const Entry *choice() {
  const Entry *entry = chosen.load(std::memory_order_acquire);
  if (entry) return entry;
  const char *forced = getenv("TUNESMITH_ISA");
  if (forced && *forced) {
    entry = find(forced);
  } else {
    int count;
    const Entry *table = entries(&count);
    for (int i = 0; i < count; ++i) {
      if (table[i].available) entry = &table[i];
    }
  }
  if (entry) chosen.store(entry, std::memory_order_release);
  return entry;
}

}  // namespace

int32_t ts_fail(int32_t code, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return code;
}

bool ts_reads_in_line() {
#if defined(TS_HAVE_AVX2)
  static const bool amd = cpu_is_amd();
  return amd;
#else
  return false;
#endif
}

const TsSampling *ts_sampling() {
  const Entry *entry = choice();
  return entry ? entry->sampling : nullptr;
}

const TsWeightsAhead &ts_weights_ahead() {
  static const TsWeightsAhead found = ts_reads_in_line() ? TsWeightsAhead{4096, 2048} : TsWeightsAhead{1536, 1024};
  return found;
}

const TsInt8Kernels *ts_int8_kernels() {
  const Entry *entry = choice();
  return entry ? entry->int8 : nullptr;
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
      if (table[i].available) list += (list.empty() ? "" : ",") + std::string(table[i].name);
    }
    return list;
  }();
  return names.c_str();
}

const char *ts_isa_current(void) {
  const Entry *entry = choice();
  return entry ? entry->name : nullptr;
}

int32_t ts_isa_set(const char *name) {
  const Entry *entry = name ? find(name) : nullptr;
  if (!entry) return name ? TS_UNSUPPORTED : ts_fail(TS_INVALID, "no instruction set named");
  chosen.store(entry, std::memory_order_release);
  return TS_OK;
}

}  // extern "C"
