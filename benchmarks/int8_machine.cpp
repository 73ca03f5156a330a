// What the machine can do at most, on any number of threads: vpdpbusd and AMX int8 operations, and a streaming read. Built by int8.py when a
// compiler is there.
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

// Operations (multiply and add: 2 a product) of n rounds of 24 independent vpdpbusd.
static __attribute__((noinline)) double vnni(int64_t n) {
  __m512i acc[24];
  // All loops over the sums are unrolled, or gcc keeps them in memory.
#pragma GCC unroll 24
  for (int j = 0; j < 24; ++j) acc[j] = _mm512_setzero_si512();
  const __m512i u = _mm512_set1_epi8(3), v = _mm512_set1_epi8(5);
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 24
    for (int j = 0; j < 24; ++j) __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(acc[j]) : "v"(u), "v"(v));
  }
#pragma GCC unroll 24
  for (int j = 1; j < 24; ++j) acc[0] = _mm512_add_epi32(acc[0], acc[j]);
  volatile int keep = _mm512_reduce_add_epi32(acc[0]);
  (void)keep;
  return (double)n * 24 * 64 * 2;
}

// Operations of n rounds of four independent tile products; 0 where the process may not use tiles.
static __attribute__((noinline)) double amx(int64_t n) {
  if (syscall(SYS_arch_prctl, 0x1023, 18)) return 0;
  alignas(64) uint8_t layout[64] = {1};
  for (int tile = 0; tile < 8; ++tile) {
    layout[16 + 2 * tile] = 64;
    layout[48 + tile] = 16;
  }
  __asm__ volatile("" : : "r"(layout) : "memory");
  _tile_loadconfig(layout);
  _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
  _tile_zero(4); _tile_zero(5); _tile_zero(6); _tile_zero(7);
  for (int64_t i = 0; i < n; ++i) {
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
  _tile_release();
  return (double)n * 4 * 16 * 16 * 64 * 2;
}

// Reads four stretches of `size` bytes, one behind the other in memory, side by side: memory delivers that faster than one stretch.
// Returns what all words come to under xor, so that nothing can be left out.
static uint64_t read_four(const uint8_t *data, int64_t size) {
  __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
  for (int64_t i = 0; i < size; i += 64) {
    const uint8_t *at = data + i;
    a = _mm512_xor_si512(a, _mm512_loadu_si512(at));
    b = _mm512_xor_si512(b, _mm512_loadu_si512(at + size));
    c = _mm512_xor_si512(c, _mm512_loadu_si512(at + 2 * size));
    d = _mm512_xor_si512(d, _mm512_loadu_si512(at + 3 * size));
    _mm_prefetch((const char *)at + 1024, _MM_HINT_T0);
    _mm_prefetch((const char *)at + size + 1024, _MM_HINT_T0);
    _mm_prefetch((const char *)at + 2 * size + 1024, _MM_HINT_T0);
    _mm_prefetch((const char *)at + 3 * size + 1024, _MM_HINT_T0);
  }
  alignas(64) uint64_t words[8];
  _mm512_store_si512(words, _mm512_xor_si512(_mm512_xor_si512(a, b), _mm512_xor_si512(c, d)));
  uint64_t all = 0;
  for (const uint64_t word : words) all ^= word;
  return all;
}

namespace {

typedef void (*Team)(void (*body)(void *), void *context, unsigned threads, unsigned flags);
enum { kVnni, kAmx, kRead };

struct Task {
  Team team;
  int64_t threads, kind;
  int64_t rounds;  // of a piece of kVnni or kAmx
  const uint8_t *data;
  int64_t size, pieces;
};

struct Job : Task {
  explicit Job(const Task &task) : Task(task) {}
  std::atomic<int64_t> next{0};
  std::atomic<uint64_t> sum{0};

  void work() {
    for (int64_t piece; (piece = next.fetch_add(1)) < pieces;) {
      if (kind != kRead) {
        sum += (uint64_t)(kind == kVnni ? vnni(rounds) : amx(rounds));
        continue;
      }
      const int64_t from = size / 256 * piece / pieces * 256, to = size / 256 * (piece + 1) / pieces * 256;
      sum ^= read_four(data + from, (to - from) / 4);
    }
  }
};

}  // namespace

// Does the pieces of a task on so many threads. Their team is that of the OpenMP library that torch runs on: its threads wait for work
// without sleeping, so any others would get half of a core each, or less. Null: threads of our own, where torch has no such library.
// Returns the operations, or what all 64-bit words of the data come to under xor (size: a multiple of 256).
extern "C" uint64_t run_task(const Task *task) {
  Job job(*task);
  const auto body = [](void *context) { ((Job *)context)->work(); };
  if (job.threads == 1) {
    job.work();
  } else if (job.team) {
    job.team(body, &job, (unsigned)job.threads, 0);
  } else {
    std::vector<std::thread> others;
    for (int64_t i = 1; i < job.threads; ++i) others.emplace_back(body, &job);
    job.work();
    for (std::thread &other : others) other.join();
  }
  return job.sum;
}
