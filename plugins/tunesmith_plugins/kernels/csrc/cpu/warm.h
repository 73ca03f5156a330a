// Code put together in the library because it runs together: a call that comes after other work finds none of it in the
// caches, and can ask for all of it at once (ts_warm_code) instead of waiting for one line after the other. A function in
// such a section must not be inline in a header: the compiler refuses to mix.
#pragma once

#include <stdint.h>

#if defined(__ELF__) && defined(__GNUC__)
#define TS_WARM __attribute__((section("ts_warm")))                        // what every usual call of sampling runs
#define TS_WARM_TOP_P __attribute__((section("ts_warm_top_p"), noinline))  // ... and what one with top-p on a dense row does
#define TS_WARM_FLAT __attribute__((section("ts_warm_flat"), noinline))    // ... if that row is flat
#define TS_WARM_EDITS __attribute__((section("ts_warm_edits"), noinline))  // ... with a penalty of the history
#define TS_WARM_LISTS __attribute__((section("ts_warm_lists"), noinline))  // ... with top-p or min-p on what others left
#define TS_WARM_INT8 __attribute__((section("ts_warm_int8")))              // what an int8 layer runs (ts_int8_warm_code)
#define TS_APART __attribute__((noinline))                                 // what few calls need, kept out of such functions
#define TS_WARM_BOUNDS(section) __start_##section, __stop_##section - __start_##section
// Made by the linker.
#define TS_WARM_SECTION(section)                                                 \
  extern const char __start_##section[] __attribute__((visibility("hidden"))); \
  extern const char __stop_##section[] __attribute__((visibility("hidden")));
extern "C" {
TS_WARM_SECTION(ts_warm)
TS_WARM_SECTION(ts_warm_top_p)
TS_WARM_SECTION(ts_warm_flat)
TS_WARM_SECTION(ts_warm_edits)
TS_WARM_SECTION(ts_warm_lists)
TS_WARM_SECTION(ts_warm_int8)
}
#undef TS_WARM_SECTION

// Asks for that much code, or work space.
inline void ts_ask_for(const void *begin, int64_t bytes) {
  for (int64_t at = 0; begin && at < bytes; at += 64) __builtin_prefetch((const char *)begin + at, 0, 2);
  asm volatile("");  // else a function that only does this counts as one that does nothing, and is left out
}
#else
#define TS_WARM
#define TS_WARM_TOP_P
#define TS_WARM_FLAT
#define TS_WARM_EDITS
#define TS_WARM_LISTS
#define TS_WARM_INT8
#define TS_APART
#define TS_WARM_BOUNDS(section) nullptr, 0
inline void ts_ask_for(const void *, int64_t) {}
#endif
