// Work shared among threads so that the caller finishes whatever nobody else has taken.
#pragma once

#include <stdint.h>

// Calls body(context, index) for every index of [0, count), each once, on the calling thread and at most threads - 1
// others, and returns when all are done. The caller takes work as long as there is any. Without a team (ts_use_team) there is
// no barrier: a worker that wakes up late costs nothing; only pieces already begun elsewhere are waited for. A second caller
// at the same time does its work alone. Which thread does which piece is left to chance, so results must not depend on it.
// body must not throw. `cost` is roughly how many microseconds the whole takes on one thread, 0 where nobody knows.
void ts_parallel(int32_t threads, int64_t count, double cost, void (*body)(void *context, int64_t index), void *context);

// Whether the threads are those of ts_use_team, which take up work at once. They do wait for one another at the end: where that
// takes longer than the work alone would have, the team is let be for a while by all calls that do not take far longer.
bool ts_has_team();
