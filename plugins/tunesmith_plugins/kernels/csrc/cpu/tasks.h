// Tasks that may fail, shared among threads.
#pragma once

#include <atomic>

#include "error.h"
#include "pool.h"

// Calls call.one(index) for every index of [0, count) as ts_parallel does; what is thrown becomes the call's code. `where` ends
// the message.
template <typename Call>
int32_t ts_tasks(int32_t threads, int64_t count, double cost, Call &call, const char *where) {
  struct Work {
    Call &call;
    std::atomic<int32_t> code;
  } work = {call, {TS_OK}};
  const auto body = [](void *context, int64_t index) {
    Work &shared = *(Work *)context;
    const int32_t code = ts_guard([&shared, index]() -> int32_t {
      shared.call.one(index);
      return TS_OK;
    });
    if (code != TS_OK) shared.code.store(code, std::memory_order_relaxed);
  };
  ts_parallel(threads, count, cost, body, &work);
  const int32_t failed = work.code.load(std::memory_order_relaxed);
  return failed == TS_OK ? TS_OK : ts_fail(failed, "a thread ran out of memory, or failed otherwise, in %s", where);
}
