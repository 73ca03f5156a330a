// What the machine can do at most: vpdpbusd and AMX int8 operations, and a streaming read. Built by int8.py when a
// compiler is there.
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

// Operations (multiply and add: 2 a product) of n rounds of 24 independent vpdpbusd.
extern "C" double vnni(int64_t n) {
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
extern "C" double amx(int64_t n) {
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

// Reads size bytes once.
extern "C" double read_stream(const uint8_t *data, int64_t size) {
  __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
  for (int64_t i = 0; i + 256 <= size; i += 256) {
    a = _mm512_xor_si512(a, _mm512_loadu_si512(data + i));
    b = _mm512_xor_si512(b, _mm512_loadu_si512(data + i + 64));
    c = _mm512_xor_si512(c, _mm512_loadu_si512(data + i + 128));
    d = _mm512_xor_si512(d, _mm512_loadu_si512(data + i + 192));
    _mm_prefetch((const char *)data + i + 2048, _MM_HINT_T0);
    _mm_prefetch((const char *)data + i + 2112, _MM_HINT_T0);
    _mm_prefetch((const char *)data + i + 2176, _MM_HINT_T0);
    _mm_prefetch((const char *)data + i + 2240, _MM_HINT_T0);
  }
  volatile int keep = _mm512_reduce_add_epi32(_mm512_xor_si512(_mm512_xor_si512(a, b), _mm512_xor_si512(c, d)));
  (void)keep;
  return (double)size;
}
