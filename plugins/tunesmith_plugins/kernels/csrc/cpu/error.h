// The thread's last message and the guard that keeps exceptions inside the library.
#pragma once

#include <new>

#include "tunesmith.h"

// Formats like printf into the calling thread's message and returns code.
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
int32_t ts_fail(int32_t code, const char *format, ...);

// What is only known here becomes a code: nothing may be thrown across the C interface.
template <typename Body>
int32_t ts_guard(Body body) {
  try {
    return body();
  } catch (const std::bad_alloc &) {
    return ts_fail(TS_MEMORY, "out of memory in the native library");
  } catch (...) {
    return ts_fail(TS_INTERNAL, "unexpected exception in the native library");
  }
}
