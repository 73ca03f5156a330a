// Code that every usual call runs, put together in the library: a call that comes after other work finds none of it in the
// caches, and can ask for all of it at once (ts_warm_code) instead of waiting for one line after the other.
#pragma once

#if defined(__ELF__) && defined(__GNUC__)
#define TS_WARM __attribute__((section("ts_warm")))
#define TS_WARM_BOUNDS {__start_ts_warm, __stop_ts_warm - __start_ts_warm}
#define TS_WARM_INT8 __attribute__((section("ts_warm_int8")))  // the same of an int8 layer (ts_int8_warm_code)
#define TS_WARM_INT8_BOUNDS {__start_ts_warm_int8, __stop_ts_warm_int8 - __start_ts_warm_int8}
#define TS_APART __attribute__((noinline))  // what few calls need, kept out of such functions
// Made by the linker.
extern "C" {
extern const char __start_ts_warm[] __attribute__((visibility("hidden")));
extern const char __stop_ts_warm[] __attribute__((visibility("hidden")));
extern const char __start_ts_warm_int8[] __attribute__((visibility("hidden")));
extern const char __stop_ts_warm_int8[] __attribute__((visibility("hidden")));
}
#else
#define TS_WARM
#define TS_WARM_BOUNDS {nullptr, 0}
#define TS_WARM_INT8
#define TS_WARM_INT8_BOUNDS {nullptr, 0}
#define TS_APART
#endif
