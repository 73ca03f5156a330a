// Code that every usual call runs, put together in the library: a call that comes after other work finds none of it in the
// caches, and can ask for all of it at once (ts_warm_code) instead of waiting for one line after the other.
#pragma once

#if defined(__ELF__) && defined(__GNUC__)
#define TS_WARM __attribute__((section("ts_warm")))
#define TS_WARM_BOUNDS {__start_ts_warm, __stop_ts_warm - __start_ts_warm}
// Made by the linker.
extern "C" {
extern const char __start_ts_warm[] __attribute__((visibility("hidden")));
extern const char __stop_ts_warm[] __attribute__((visibility("hidden")));
}
#else
#define TS_WARM
#define TS_WARM_BOUNDS {nullptr, 0}
#endif
