// The int8 layers: rows quantised block by block, integer products panel by panel, results written once.
#include <math.h>
#include <string.h>

#include <atomic>
#include <vector>

#include "error.h"
#include "int8_call.h"
#include "int8_kernels.h"
#include "int8_math.h"
#include "int8_plain.h"
#include "int8_share.h"
#include "load.h"
#include "numeric.h"
#include "pool.h"
#include "tunesmith.h"
#include "warm.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

constexpr int kMostTileRows = 32;
constexpr int64_t kBlockBytes = 3 << 19;  // of quantised rows at a time, to stay in the second cache

int64_t up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// A row with a NaN or an infinity gets scale NaN and zeros, so that whatever is computed from it is NaN.
struct Range {
  float scale, inverse;
  int32_t zero_point;
  bool finite;
};

Range range_of(const TsInt8Kernels &kernels, const void *x, int64_t k, int32_t dtype, int32_t mode, const ts_int8_args *args) {
  float lowest = 0, highest = 0;
  if (!kernels.row_range(x, k, dtype, &lowest, &highest)) return {NAN, 0, 0, false};
  if (mode == TS_STATIC) return {args->static_scale, 1.0f / args->static_scale, args->static_zero_point, true};
  if (mode == TS_WEIGHT_ONLY) {
    const float scale = ts_row_scale_12(lowest, highest);
    return {scale, 1.0f / scale, 0, true};
  }
  const float scale = ts_row_scale(lowest, highest), inverse = 1.0f / scale;
  return {scale, inverse, ts_row_zero_point(lowest, inverse), true};
}

float *scratch_row(int64_t k) {
  static thread_local std::vector<float> row;
  if ((int64_t)row.size() < k) row.resize((size_t)k);
  return row.data();
}

// A row after the norm, in float32. Sums run in float64 over eight lanes whatever the instruction set.
TS_APART void normalise(const ts_int8_args &a, const void *x, float *y) {
  double sums[8] = {}, squares[8] = {};
  for (int64_t i = 0; i < a.k; ++i) y[i] = ts_load(x, i, a.dtype);
  int64_t i = 0;
  if (a.norm == TS_LAYER_NORM) {
    for (; i + 8 <= a.k; i += 8)
      for (int lane = 0; lane < 8; ++lane) sums[lane] += (double)y[i + lane];
    for (; i < a.k; ++i) sums[i % 8] += (double)y[i];
  }
  double sum = 0, square = 0;
  for (int lane = 0; lane < 8; ++lane) sum += sums[lane];
  const double mean = sum / (double)a.k;
  for (i = 0; i + 8 <= a.k; i += 8)
    for (int lane = 0; lane < 8; ++lane) squares[lane] += ((double)y[i + lane] - mean) * ((double)y[i + lane] - mean);
  for (; i < a.k; ++i) squares[i % 8] += ((double)y[i] - mean) * ((double)y[i] - mean);
  for (int lane = 0; lane < 8; ++lane) square += squares[lane];
  const float centre = (float)mean, factor = (float)(1.0 / sqrt(square / (double)a.k + a.norm_epsilon));
  for (i = 0; i < a.k; ++i) y[i] = (y[i] - centre) * factor * a.norm_weight[i];
  if (a.norm_bias)
    for (i = 0; i < a.k; ++i) y[i] = y[i] + a.norm_bias[i];
}

// Rows of a stretch that are quantised alike.
struct Rows {
  uint8_t *q;
  int64_t count;  // of rows of x
  int per_row;    // quantised rows a row of x becomes: 2 in 12 bits
  int block_rows;
  float *scale;
  int32_t *zero_point;
  const int32_t *order;  // which rows of the stretch; null: the first `count`

  uint8_t *block(int64_t index, int64_t k_padded) const { return q + index * block_rows * k_padded; }
  int64_t blocks() const { return (count * per_row + block_rows - 1) / block_rows; }
};

// What the threads need to quantise and multiply the rows of one stretch.
struct Work {
  const ts_int8_args &args;
  const TsInt8Kernels &kernels;
  int64_t k_padded;
  int64_t first = 0;  // of x, in this stretch
  Rows kinds[2] = {};  // TS_MIXED: rows in 8 bits, rows in 12
  int kind_count = 1;
  uint8_t *wide = nullptr;  // TS_MIXED: whether a row needs 12 bits
  mutable std::atomic<bool> any_wide{false};
  int64_t panels_a_task = 1;
  std::atomic<int32_t> code{TS_OK};  // of a piece that failed

  // The row that is quantised, and its type.
  const void *source(int64_t row, int32_t *dtype, bool keep) const {
    const void *x = ts_row(args.x, first + row, args.row_stride, args.dtype);
    *dtype = args.dtype;
    if (!args.norm) return x;
    float *y = scratch_row(args.k);
    normalise(args, x, y);
    *dtype = TS_F32;
    if (keep && args.norm_out)
      for (int64_t i = 0; i < args.k; ++i) ts_store(args.norm_out, (first + row) * args.k + i, args.dtype, y[i]);
    return y;
  }

  void quantize_block(const Rows &rows, int64_t index) const {
    const int64_t rows_a_block = rows.block_rows / rows.per_row, stride = rows.block_rows * kPanel;
    const int32_t mode = rows.per_row == 2 ? TS_WEIGHT_ONLY : args.mode;
    for (int64_t at = index * rows_a_block; at < rows.count && at < (index + 1) * rows_a_block; ++at) {
      int32_t dtype;
      const void *x = source(rows.order ? rows.order[at] : at, &dtype, !rows.order);
      const Range range = range_of(kernels, x, args.k, dtype, mode, &args);
      uint8_t *q = rows.block(index, k_padded) + (at - index * rows_a_block) * rows.per_row * kPanel;
      rows.scale[at] = range.scale;
      rows.zero_point[at] = range.zero_point;
      if (!range.finite) {
        for (int64_t chunk = 0; chunk < k_padded / kPanel; ++chunk) memset(q + chunk * stride, 0, (size_t)(rows.per_row * kPanel));
      } else if (mode == TS_WEIGHT_ONLY) {
        kernels.quantize12(x, args.k, dtype, range.inverse, q, stride);
      } else {
        kernels.quantize(x, args.k, dtype, range.inverse, range.zero_point, q, stride);
      }
      if (wide && !rows.order) {
        wide[at] = range.finite && loses(q, stride, range.zero_point);
        if (wide[at]) any_wide.store(true, std::memory_order_relaxed);
      }
    }
  }

  // Whether 8 bits are too few for a row; 0 is exact in any number of them.
  bool loses(const uint8_t *q, int64_t stride, int32_t zero_point) const {
    int64_t sum, squares;
    kernels.moments(q, args.k, stride, &sum, &squares);
    squares += zero_point * (zero_point * args.k - 2 * sum);
    return squares > 0 && squares < TS_MIXED_SQUARE * args.k;
  }

  TS_APART void move_row(int64_t to, int64_t from) const {
    const Rows &rows = kinds[0];
    const int64_t stride = rows.block_rows * kPanel;
    uint8_t *target = rows.block(to / rows.block_rows, k_padded) + to % rows.block_rows * kPanel;
    const uint8_t *source = rows.block(from / rows.block_rows, k_padded) + from % rows.block_rows * kPanel;
    for (int64_t chunk = 0; chunk < k_padded / kPanel; ++chunk) memcpy(target + chunk * stride, source + chunk * stride, kPanel);
    rows.scale[to] = rows.scale[from];
    rows.zero_point[to] = rows.zero_point[from];
  }

  // How the sums of a panel become the results of the first row.
  TsTail tail_of(const ts_int8_layer &layer, int64_t column) const {
    return {layer.scale + column, layer.sum + column, layer.bias ? layer.bias + column : nullptr, nullptr, layer.out_stride, nullptr, nullptr,
            (int32_t)(layer.n - column < kPanel ? layer.n - column : kPanel), args.dtype, layer.activation};
  }

  TS_WARM_INT8 void panels(const ts_int8_layer &layer, int64_t index, int64_t many, const Rows &rows) const {
    if (many > 1 && rows.count * rows.per_row == 1) return side_by_side(layer, index, many, rows);
    for (int64_t i = 0; i < many; ++i) panel(layer, index + i, rows);
  }

  // Panels of one row that follow one another.
  TS_WARM_INT8 void side_by_side(const ts_int8_layer &layer, int64_t index, int64_t many, const Rows &rows) const {
    alignas(64) int32_t sums[kSideBySide * kPanel];
    const int64_t panel_bytes = kPanel * k_padded, item = args.dtype == TS_F32 ? 4 : 2;
    kernels.dots_side(rows.q, rows.block_rows * kPanel, layer.weight + index * panel_bytes, panel_bytes, (int)many, (args.k + 3) / 4, sums);
    const int64_t row = first + (rows.order ? rows.order[0] : 0);
    for (int64_t i = 0; i < many; ++i) {
      const int64_t column = (index + i) * kPanel, offset = (row * layer.out_stride + column) * item;
      TsTail tail = tail_of(layer, column);
      tail.out = (char *)layer.out + offset;
      tail.multiply = layer.multiply ? (const char *)layer.multiply + offset : nullptr;
      tail.residual = layer.residual ? (const char *)layer.residual + offset : nullptr;
      kernels.finish(sums + i * kPanel, 1, rows.scale, rows.zero_point, tail);
    }
  }

  TS_WARM_INT8 void panel(const ts_int8_layer &layer, int64_t index, const Rows &rows) const {
    alignas(64) int32_t c[kMostTileRows * kPanel];
    const int64_t column = index * kPanel, stride = rows.block_rows * kPanel;
    const int8_t *w = layer.weight + index * kPanel * k_padded;
    const int64_t item = args.dtype == TS_F32 ? 4 : 2;
    TsTail tail = tail_of(layer, column);
    const int64_t quantised = rows.count * rows.per_row, steps = (args.k + 3) / 4;
    // From memory the next panel takes a good part of the time that this one's products take.
    const int64_t whole_tiles = quantised / kernels.tile_rows, panel_bytes = kPanel * k_padded;
    const bool fetch = kernels.dots_ahead && !args.group_size && quantised >= kernels.ahead_rows;
    const int64_t turns = whole_tiles * kernels.ahead_passes * (k_padded / kPanel);
    const int lines = fetch && (index + 1) * kPanel < layer.n ? (int)((panel_bytes / 64 + turns - 1) / turns) : 0;
    // Of many rows, results go to lines that are in no cache. (In 12 bits there are half as many of them as the tile has rows.)
    const bool follow = !rows.order && rows.per_row == 1;
    for (int64_t at = 0; at < quantised; at += kernels.tile_rows) {
      const int m = (int)(quantised - at < kernels.tile_rows ? quantised - at : kernels.tile_rows), many = m / rows.per_row;
      const int64_t slot = at / rows.per_row;
      const uint8_t *a = rows.block(at / rows.block_rows, k_padded);
      const uint8_t *a_next = a + rows.block_rows * k_padded;
      const int64_t a_tile = kernels.ahead_passes * k_padded * lines, fetched = at / kernels.tile_rows * a_tile;
      if (fetch) {
        const bool more = lines && fetched + a_tile <= panel_bytes;
        const TsAhead ahead = {more ? w + panel_bytes + fetched : w, more ? lines : 0,
                               follow ? (char *)layer.out + ((first + slot) * layer.out_stride + column) * item : nullptr,
                               layer.out_stride * item, (int)(tail.columns * item)};
        kernels.dots_ahead(a, a_next, stride, m, w, steps, c, ahead);
      } else if (!args.group_size) {
        kernels.dots(a, a_next, stride, m, w, steps, c);
      }
      for (int done = 0, run; done < many; done += run) {  // results of rows that follow one another
        const int64_t row = rows.order ? rows.order[slot + done] : slot;
        run = rows.order ? 1 : many;
        while (done + run < many && rows.order[slot + done + run] == row + run) ++run;
        const int64_t offset = ((first + row) * layer.out_stride + column) * item;
        tail.out = (char *)layer.out + offset;
        tail.multiply = layer.multiply ? (const char *)layer.multiply + offset : nullptr;
        tail.residual = layer.residual ? (const char *)layer.residual + offset : nullptr;
        const float *scale = rows.scale + slot + done;
        if (args.group_size) {
          groups(layer, a, stride, m, w, scale, tail, c);
        } else if (rows.per_row == 2) {
          kernels.finish12(c + 2 * done * kPanel, run, scale, args.k > TS_MAX_K_12, tail);
        } else {
          kernels.finish(c + done * kPanel, run, scale, rows.zero_point + slot + done, tail);
        }
      }
    }
  }

  TS_APART void groups(const ts_int8_layer &layer, const uint8_t *a, int64_t stride, int m, const int8_t *w, const float *scale, const TsTail &tail,
              int32_t *c) const {
    alignas(64) float y[kMostTileRows / 2 * kPanel];
    memset(y, 0, sizeof(float) * (size_t)(m / 2) * kPanel);
    TsTail group = tail;
    for (int64_t from = 0; from < args.k; from += args.group_size) {
      const int64_t length = args.k - from < args.group_size ? args.k - from : args.group_size;
      const uint8_t *part = a + from / kPanel * stride + from % kPanel;
      kernels.dots(part, nullptr, stride, m, w + from * kPanel, (length + 3) / 4, c);
      kernels.add_group12(c, m / 2, group, y);
      group.scale += layer.n;
      group.sum += layer.n;
    }
    kernels.finish_groups(y, m / 2, scale, tail);
  }

  // A layer whose `multiply` is the result of the layer before it is done by the task that does the same panels there.
  static bool follows(const ts_int8_layer *layers, int64_t i) {
    return i > 0 && layers[i].multiply && layers[i].multiply == layers[i - 1].out;
  }

  int64_t tasks_of(int64_t i) const {
    if (follows(args.layers, i)) return 0;
    return (up(args.layers[i].n, kPanel) / kPanel + panels_a_task - 1) / panels_a_task;
  }

  TS_WARM_INT8 void task(int64_t index) const {
    int64_t i = 0;
    while (index >= tasks_of(i)) index -= tasks_of(i++);
    const int64_t all = up(args.layers[i].n, kPanel) / kPanel, from = index * panels_a_task;
    const int64_t end = from + panels_a_task < all ? from + panels_a_task : all;
    const int64_t most = !kernels.dots_side || args.group_size ? 1 : k_padded <= kSideK ? kSideBySide : 2;
    if (kind_count == 1) kernels.begin(kinds[0].block_rows);
    for (int64_t at = from, many; at < end; at += many) {
      many = end - at < most ? end - at : most;
      for (int kind = 0; kind < kind_count; ++kind) {  // while the panels are in the cache
        if (kind_count > 1) kernels.begin(kinds[kind].block_rows);
        panels(args.layers[i], at, many, kinds[kind]);
        for (int64_t next = i + 1; next < args.layer_count && follows(args.layers, next); ++next) panels(args.layers[next], at, many, kinds[kind]);
      }
    }
    kernels.end();
  }
};

// A row after the norm needs work space of its own, which a thread may fail to get.
TS_WARM_INT8 void quantize_task(void *context, int64_t index) {
  Work &work = *(Work *)context;
  const int32_t code = ts_guard([&work, index]() -> int32_t {
    work.quantize_block(work.kinds[work.kind_count - 1], index);
    return TS_OK;
  });
  if (code != TS_OK) work.code.store(code, std::memory_order_relaxed);
}
TS_WARM_INT8 void product_task(void *work, int64_t index) { ((const Work *)work)->task(index); }

struct Scratch {
  std::vector<uint8_t> bytes, bytes12, wide;
  std::vector<float> scale, scale12;
  std::vector<int32_t> zero_point, zero_point12, order, order12;

  static uint8_t *aligned(std::vector<uint8_t> &bytes, int64_t size) {
    if ((int64_t)bytes.size() < size + 64) bytes.resize((size_t)size + 64);
    return (uint8_t *)(((uintptr_t)bytes.data() + 63) & ~(uintptr_t)63);
  }

  template <typename Item>
  static Item *at_least(std::vector<Item> &items, int64_t size) {
    if ((int64_t)items.size() < size) items.resize((size_t)size);
    return items.data();
  }
};

int64_t room(const TsInt8Kernels &kernels, int64_t quantised, int block_rows, int64_t k_padded) {
  return (up(quantised, kernels.tile_rows) + block_rows) * k_padded;
}

// Sorts the rows of a stretch by the bits they need: those in 8 move together, so that no tile computes for nothing.
TS_APART void split_rows(Work &work, Scratch &scratch, int64_t count) {
  int32_t *order12 = Scratch::at_least(scratch.order12, count);
  int64_t many = 0;
  for (int64_t row = 0; row < count; ++row)
    if (work.wide[row]) order12[many++] = (int32_t)row;
  int32_t *order = Scratch::at_least(scratch.order, count);
  Rows &narrow = work.kinds[0], &wide = work.kinds[1];
  narrow.count = count - many;
  narrow.order = order;
  int64_t last = count - 1;
  for (int64_t at = 0; at < narrow.count; ++at) {
    order[at] = (int32_t)at;
    if (!work.wide[at]) continue;
    while (work.wide[last]) --last;
    work.move_row(at, last);
    order[at] = (int32_t)last--;
  }
  const int block_rows = (int)(2 * many < work.kernels.rows ? 2 * many : work.kernels.rows);
  wide = {Scratch::aligned(scratch.bytes12, room(work.kernels, 2 * many, block_rows, work.k_padded)), many, 2, block_rows,
          Scratch::at_least(scratch.scale12, many), Scratch::at_least(scratch.zero_point12, many), order12};
  work.kind_count = 2;
}

const TsInt8Kernels *table_for(const ts_int8_args &a, int64_t quantised) {
  const TsInt8Kernels *kernels = ts_int8_kernels();
  if (kernels && a.group_size && kernels->partial) kernels = kernels->partial;
  while (kernels && kernels->below && quantised < kernels->min_rows) kernels = kernels->below;
  return kernels;
}

TS_WARM_INT8 int32_t linears(const ts_int8_args *args) {
  if (!args) return ts_fail(TS_INVALID, "no arguments");
  ts_int8_args a = *args;
  const int32_t code = ts_check_int8(a, ts_fail);
  if (code != TS_OK) return code;
  if (a.mode == TS_MIXED && a.k <= TS_MIXED_K) a.mode = TS_WEIGHT_ONLY;
  const int per_row = a.mode == TS_WEIGHT_ONLY ? 2 : 1;
  const TsInt8Kernels *kernels = table_for(a, a.rows * per_row);
  if (!kernels) return TS_UNSUPPORTED;
  int64_t columns = 0;
  for (int64_t i = 0; i < a.layer_count; ++i) columns += up(a.layers[i].n, kPanel);
  if (!a.rows || !columns) return TS_OK;

  const int64_t k_padded = up(a.k, kPanel);
  const int block_rows = (int)(a.rows * per_row < kernels->rows ? a.rows * per_row : kernels->rows);
  int64_t stretch = kBlockBytes / (k_padded * per_row) / (2 * kMostTileRows) * (2 * kMostTileRows);
  // A stretch is whole tiles of every table: a multiple of 6, 16 and 32 rows.
  stretch = up(stretch < 192 ? 192 : stretch, 192) / per_row;
  const int64_t most = a.rows < stretch ? a.rows : stretch;
  const int32_t threads = a.threads > 0 ? a.threads : 1;
  const bool team = threads > 1 && ts_has_team();
  static thread_local Scratch scratch;
  Work work = {a, *kernels, k_padded};
  const Rows all = {Scratch::aligned(scratch.bytes, room(*kernels, most * per_row, block_rows, k_padded)), 0, per_row, block_rows,
                    Scratch::at_least(scratch.scale, most), Scratch::at_least(scratch.zero_point, most), nullptr};
  if (a.mode == TS_MIXED) work.wide = Scratch::at_least(scratch.wide, most);
  for (work.first = 0; work.first < a.rows; work.first += stretch) {
    const int64_t rows = a.rows - work.first < stretch ? a.rows - work.first : stretch;
    work.kinds[0] = all;
    work.kinds[0].count = rows;
    work.kind_count = 1;
    work.any_wide.store(false, std::memory_order_relaxed);
    const auto quantize = [&](const Rows &kind) {
      const double cost = ts_quantize_cost((double)(kind.count * kind.per_row), (double)k_padded);
      ts_parallel(cost > (team ? kWorthSharingRows : kWorthWaking) ? threads : 1, kind.blocks(), cost, quantize_task, &work);
    };
    quantize(work.kinds[0]);
    if (work.any_wide.load(std::memory_order_relaxed) && work.code.load(std::memory_order_relaxed) == TS_OK) {
      split_rows(work, scratch, rows);
      quantize(work.kinds[1]);
    }
    const int32_t failed = work.code.load(std::memory_order_relaxed);
    if (failed != TS_OK) return ts_fail(failed, "a thread ran out of memory, or failed otherwise, in a row of x");
    double quantised = 0;
    for (int kind = 0; kind < work.kind_count; ++kind) quantised += (double)(work.kinds[kind].count * work.kinds[kind].per_row);
    const double products = kernels->tile_rows == kMostTileRows ? kTileProducts : kProducts;
    const double cost = ts_product_cost((double)columns, quantised, (double)k_padded, products);
    const bool share = cost > (team ? kWorthSharing : kWorthWaking);
    work.panels_a_task = share && threads > 1 ? columns / kPanel / (threads * 8) : columns / kPanel;
    if (work.panels_a_task < 1) work.panels_a_task = 1;
    // One row takes panels side by side, unless that would leave threads without work.
    if (kernels->dots_side && rows * per_row == 1 && columns / kPanel >= kSideBySide * threads)
      work.panels_a_task = up(work.panels_a_task, kSideBySide);
    int64_t tasks = 0;
    for (int64_t i = 0; i < a.layer_count; ++i) tasks += work.tasks_of(i);
    ts_parallel(share ? threads : 1, tasks, cost, product_task, &work);
  }
  return TS_OK;
}

}  // namespace

extern "C" int32_t ts_quantize_rows(const ts_quantize_args *args) {
  return ts_guard([args]() -> int32_t {
    if (!args) return ts_fail(TS_INVALID, "no arguments");
    const ts_quantize_args &a = *args;
    const int32_t code = ts_check_rows(a.x, a.rows, a.k, a.dtype, ts_fail);
    if (code != TS_OK) return code;
    const TsInt8Kernels *kernels = ts_int8_kernels();
    if (!kernels) return TS_UNSUPPORTED;
    std::vector<uint8_t> buffer((size_t)up(a.k, kPanel));
    for (int64_t row = 0; row < a.rows; ++row) {
      const void *x = ts_row(a.x, row, a.row_stride, a.dtype);
      const Range range = range_of(*kernels, x, a.k, a.dtype, TS_DYNAMIC, nullptr);
      a.scale[row] = range.scale;
      a.zero_point[row] = range.zero_point;
      if (range.finite) {
        kernels->quantize(x, a.k, a.dtype, range.inverse, range.zero_point, buffer.data(), kPanel);
        for (int64_t i = 0; i < a.k; ++i) a.q[row * a.k + i] = buffer[(size_t)i] ^ kernels->flip;
      } else {
        memset(a.q + row * a.k, 0, (size_t)a.k);
      }
    }
    return TS_OK;
  });
}

extern "C" TS_WARM_INT8 int32_t ts_int8_linears(const ts_int8_args *args) {
  return ts_guard([args] { return linears(args); });
}

extern "C" TS_WARM_INT8 int32_t ts_int8_linears_words(const int64_t *words, int64_t count) {
  TsInt8Call call;
  const int32_t code = call.read(words, count, ts_fail);
  return code == TS_OK ? ts_int8_linears(&call.args) : code;
}

extern "C" int32_t ts_int8_warm_code(int64_t *words) {
  const TsInt8Kernels *kernels = ts_int8_kernels();
  if (!kernels) return TS_UNSUPPORTED;
  while (kernels->below && kernels->min_rows > 1) kernels = kernels->below;
  const struct {
    const void *begin;
    int64_t bytes;
  } ranges[TS_INT8_WARM_RANGES] = {{TS_WARM_BOUNDS(ts_warm_int8)},
                                  {(const void *)kernels->row_range, 512},
                                  {(const void *)kernels->quantize, 640},
                                  {(const void *)kernels->moments, 256},
                                  {kernels->dots_side ? (const void *)kernels->dots_side : (const void *)kernels->dots, 832},
                                  {(const void *)kernels->finish, 1088}};
  for (int i = 0; i < TS_INT8_WARM_RANGES; ++i) {
    words[2 * i] = (int64_t)(intptr_t)ranges[i].begin;
    words[2 * i + 1] = ranges[i].bytes;
  }
  return TS_OK;
}

extern "C" int32_t ts_int8_pack(const int8_t *weight, int64_t n, int64_t k, int8_t *packed) {
  return ts_guard([=]() -> int32_t {
    if (n < 0 || k < 1 || k > TS_MAX_K || (n && (!weight || !packed))) return ts_fail(TS_INVALID, "weight must be (n, k) with k in [1, %d]", TS_MAX_K);
    const int64_t k_padded = up(k, kPanel), size = up(n, kPanel) * k_padded;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    // Few large pages make a long stream of weights faster; a refusal costs nothing.
    const uintptr_t page = 1 << 21, from = ((uintptr_t)packed + page - 1) & ~(page - 1), to = ((uintptr_t)packed + (uintptr_t)size) & ~(page - 1);
    if (from < to) madvise((void *)from, to - from, MADV_HUGEPAGE);
#endif
    memset(packed, 0, (size_t)size);
    for (int64_t row = 0; row < n; ++row) {
      int8_t *panel = packed + row / kPanel * kPanel * k_padded + row % kPanel * 4;
      const int8_t *source = weight + row * k;
      int64_t i = 0;
      for (; i + 4 <= k; i += 4) memcpy(panel + i * kPanel, source + i, 4);
      if (i < k) memcpy(panel + i * kPanel, source + i, (size_t)(k - i));
    }
    return TS_OK;
  });
}
