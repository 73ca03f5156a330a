// AMX tiles: 16 rows x 16 channels, 64 steps of k at a time, on the same packed weights. Rows and results go through
// the AVX-512 version. Two blocks of rows by two tiles of channels keep four accumulators busy; a single block takes
// all four tiles of a panel.
#include <immintrin.h>

#include "int8_avx512vnni.h"

namespace {

constexpr int kTile = 16;

struct alignas(64) Layout {
  uint8_t palette, start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

void begin(int block_rows) {
  Layout layout = {};
  layout.palette = 1;
  for (int tile = 0; tile < 8; ++tile) {
    layout.row_bytes[tile] = 64;
    layout.rows[tile] = (uint8_t)(tile < 6 ? block_rows : kTile);  // 0-3 sums, 4-5 rows of x, 6-7 weights
  }
  __asm__ volatile("" : : "r"(&layout) : "memory");  // gcc takes the intrinsic to read the first eight bytes only
  _tile_loadconfig(&layout);
}

void end() { _tile_release(); }

void one_block(const uint8_t *a, int64_t stride, const int8_t *w, int64_t tiles, int32_t *c) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t t = 0; t < tiles; ++t, a += stride, w += kTile * 256) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, w, 256);
    _tile_loadd(7, w + 64, 256);
    _tile_dpbusd(0, 4, 6);
    _tile_loadd(6, w + 128, 256);
    _tile_dpbusd(1, 4, 7);
    _tile_loadd(7, w + 192, 256);
    _tile_dpbusd(2, 4, 6);
    _tile_dpbusd(3, 4, 7);
  }
  _tile_stored(0, c, 256);
  _tile_stored(1, c + 16, 256);
  _tile_stored(2, c + 32, 256);
  _tile_stored(3, c + 48, 256);
}

// The lines that `rows` results of a tile lie in, a row at a time.
struct Results {
  const TsAhead &ahead;
  int row, rows;
  void fetch(int64_t many) {
    for (; many > 0 && row < rows; --many, ++row)
      for (int byte = 0; byte < ahead.columns_bytes; byte += 64) __builtin_prefetch(ahead.out + row * ahead.out_bytes + byte, 1);
  }
};

// Half a panel against two blocks. The half that comes first fetches the rows of the first block, the other the rest.
template <bool Ahead>
void two_blocks(const uint8_t *a, const uint8_t *b, int64_t stride, const int8_t *w, int64_t tiles, int32_t *c, const TsAhead &ahead, int half, int m) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const int8_t *next = Ahead ? ahead.weights + half * tiles * ahead.lines * 64 : nullptr;
  Results results = {ahead, half * kTile, Ahead && ahead.out ? (half ? m : kTile) : 0};
  const int64_t rows_a_step = Ahead ? (kTile + tiles - 1) / tiles : 0;
  for (int64_t t = 0; t < tiles; ++t, a += stride, b += stride, w += kTile * 256) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, w, 256);
    _tile_loadd(7, w + 64, 256);
    _tile_loadd(5, b, 64);
    if (Ahead) {
      for (int line = 0; line < ahead.lines; ++line, next += 64) _mm_prefetch((const char *)next, _MM_HINT_T1);
      results.fetch(rows_a_step);
    }
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
  _tile_stored(0, c, 256);
  _tile_stored(1, c + 16, 256);
  _tile_stored(2, c + kTile * kPanel, 256);
  _tile_stored(3, c + kTile * kPanel + 16, 256);
}

void dots(const uint8_t *a, const uint8_t *a_next, int64_t stride, int m, const int8_t *panel, int64_t steps, int32_t *c) {
  const int64_t tiles = (steps + 15) / 16;
  if (m <= kTile) return one_block(a, stride, panel, tiles, c);
  two_blocks<false>(a, a_next, stride, panel, tiles, c, {}, 0, m);
  two_blocks<false>(a, a_next, stride, panel + 128, tiles, c + 32, {}, 1, m);
}

void dots_ahead(const uint8_t *a, const uint8_t *a_next, int64_t stride, int m, const int8_t *panel, int64_t steps, int32_t *c,
                const TsAhead &ahead) {
  const int64_t tiles = (steps + 15) / 16;
  if (m <= kTile) return one_block(a, stride, panel, tiles, c);
  two_blocks<true>(a, a_next, stride, panel, tiles, c, ahead, 0, m);
  two_blocks<true>(a, a_next, stride, panel + 128, tiles, c + 32, ahead, 1, m);
}

}  // namespace

extern const TsInt8Kernels ts_int8_amx = {
    "amx", kTile, 2 * kTile, 7, &ts_int8_avx512vnni, &ts_int8_avx512vnni, ts_avx512_row_range, ts_avx512_quantize,
    ts_avx512_quantize12, begin, end, dots, ts_avx512_finish, ts_avx512_finish12, ts_avx512_add_group12,
    ts_avx512_finish_groups, ts_avx512_moments, dots_ahead, 0, nullptr, 2 * kTile, 2};
