// attention() without a causal mask: every row of a sequence sees all of its keys. Work split: a task is (sequence, tile of query rows, kv
// head). A task takes the keys in spans of kSpan, as causal attention does. Of each span it first packs K and V as float32 panels of
// block_columns columns: of K transposed, so that one register has the scores of a row with neighbouring keys, and of V as it is. Rows then
// pass a few at a time: scores, exponentials relative to the span's largest, weighted sum of V, and the merge with the spans before.
// A row's sums are in rising order of columns and keys, whatever rows share its tile, so its bits depend on its sequence alone.
// Bytes: K and V of the sequence, once per tile. Limit: multiplications.
#include <algorithm>
#include <cstring>

#include "backend/cpu/attention_call.h"

namespace lynx_rt {

namespace {

constexpr int64_t kMostRows = 192;  // query vectors of a tile, for which a span is packed once
constexpr int64_t kRows = 48;       // query vectors that have scores at once, which then stay in the second-level cache
constexpr int64_t kTasks = 4;       // tiles for each thread, if sequences are long enough

}  // namespace

void CpuBackend::attend_tile_fully(const AttentionCall& c, const AttentionTile& tile, int64_t head, int thread, float* states) {
  const KvCacheView& cache = c.cache;
  const int64_t d = cache.head_dim, dv = cache.v_columns(), group = c.group(), panel = kernels_.block_columns;
  const int64_t m = tile.rows * group, columns = sum_columns(cache), size = state_size(cache);
  const int64_t keys = c.end_of(c.batch.query_start[tile.seq + 1] - 1);
  const int32_t* table = c.batch.block_tables + tile.seq * c.batch.max_blocks;
  void* const values = cache.v ? cache.v : cache.k;
  const int64_t value_width = cache.v ? dv : d, most = std::min(kRows, m);
  // K [span / panel, d, panel], V [columns / panel, span, panel], scores [most, span], q [most, d], states [most], a row of K or V
  const int64_t row_size = std::max(d, columns);
  float* packed_k = tile_[size_t(thread)].get(kSpan * (d + columns + most) + most * (d + size) + row_size);
  float *packed_v = packed_k + kSpan * d, *scores = packed_v + kSpan * columns, *queries = scores + most * kSpan;
  float *parts = queries + most * d, *row = parts + most * size;
  const auto key_row = [&](void* base, int64_t width, int64_t key) {
    return page(base, cache, width, table[key / cache.block_size], head) +
           key % cache.block_size * width * dtype_size(cache.dtype);
  };
  for (int64_t first = 0; first < keys; first += kSpan) {
    const int64_t count = std::min(kSpan, keys - first), padded = round_up(count, panel);
    if (padded > count) std::fill_n(packed_k, padded * d, 0.0f);
    for (int64_t key = 0; key < count; ++key) {
      kernels_.to_f32(key_row(cache.k, d, first + key), cache.dtype, d, row);
      float* k = packed_k + key / panel * panel * d + key % panel;
      for (int64_t i = 0; i < d; ++i) k[i * panel] = row[i];
      kernels_.to_f32(key_row(values, value_width, first + key), cache.dtype, dv, row);
      std::fill(row + dv, row + columns, 0.0f);
      for (int64_t i = 0; i < columns; i += panel) std::copy_n(row + i, panel, packed_v + i * count + key * panel);
    }
    for (int64_t j0 = 0; j0 < m; j0 += kRows) {
      const int64_t n = std::min(kRows, m - j0);
      float* const results = first == 0 ? states + j0 * size : parts;
      const float* from[kRows];
      float* to[kRows];
      for (int64_t j = 0; j < n; ++j) {
        const int64_t t = tile.first + (j0 + j) / group, h = head * group + (j0 + j) % group;
        from[j] = queries + j * d;
        kernels_.round_to(c.args.q + t * c.args.q_stride + h * (c.args.gated ? 2 * d : d), d, compute_dtype_, queries + j * d);
      }
      std::fill_n(scores, n * kSpan, 0.0f);
      for (int64_t k = 0; k < padded; k += panel) {
        for (int64_t j = 0; j < n; ++j) to[j] = scores + j * kSpan + k;
        kernels_.weighted_sum(packed_k + k * d, panel, DType::kF32, d, from, n, panel, to);
      }
      for (int64_t j = 0; j < n; ++j) {
        from[j] = scores + j * kSpan;
        std::fill_n(results + j * size, columns, 0.0f);
        kernels_.exponentials(scores + j * kSpan, count, c.args.scale, results + j * size + columns);
      }
      for (int64_t i = 0; i < columns; i += panel) {
        for (int64_t j = 0; j < n; ++j) to[j] = results + j * size + i;
        kernels_.weighted_sum(packed_v + i * count, panel, DType::kF32, count, from, n, panel, to);
      }
      for (int64_t j = 0; j < n && first > 0; ++j)
        kernels_.merge(parts + j * size, columns, c.args.scale, states + (j0 + j) * size);
    }
  }
}

void CpuBackend::attend_fully(const AttentionCall& c) {
  const BatchView& batch = c.batch;
  const int64_t g = c.cache.num_kv_heads, group = c.group();
  // Tiles are as large as leaves each thread some of them. What a row gets does not depend on that.
  const int64_t even = ceil_div(batch.num_rows * g, kTasks * pool_.num_threads());
  const int64_t most_rows = std::max<int64_t>(1, std::min(round_up(even * group, kRows), kMostRows) / group);
  tiles_.clear();
  for (int64_t s = 0; s < batch.num_seqs; ++s)
    for (int64_t row = batch.query_start[s]; row < batch.query_start[s + 1]; row += most_rows)
      tiles_.push_back({s, row, std::min<int64_t>(most_rows, batch.query_start[s + 1] - row), 0});
  const int64_t tile_size = most_rows * group * state_size(c.cache);
  float* states = spans_.get(pool_.num_threads() * tile_size);
  pool_.parallel_for(int64_t(tiles_.size()) * g, [&](int64_t task, int thread) {
    const AttentionTile& tile = tiles_[size_t(task / g)];
    attend_tile_fully(c, tile, task % g, thread, states + thread * tile_size);
    finish_rows(c, tile, task % g, thread, false, states + thread * tile_size);
  });
}

}  // namespace lynx_rt
