// attention() without a causal mask: every row of a sequence sees all of its keys. Work split: a task is (sequence, tile of query rows, kv
// head). A task takes the keys in spans of kSpan, as causal attention does. Of each span it first packs K and V as panels of as many
// columns as a kernel's tile has: K transposed, so that a register has the scores of a row with neighbouring keys, and V as it is. Rows then
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

// Addresses of a key's K and V; null: there is no such key.
struct KeyRow {
  const void *k = nullptr, *v = nullptr;
};

// The forms of packed keys and of the rows that meet them, one for each kernel that multiplies them. A span has K [span / panel, d, panel]
// and V [columns / panel, span, panel]; its place in the memory is counted in floats.
// Float32, for any dtype: weighted_sum().
struct FloatForm {
  const cpu::Kernels& kernels;
  DType compute, cache;
  int64_t d, dv, columns;
  int64_t panel = kernels.block_columns;

  int64_t key_size() const { return d; }
  int64_t row_size(int64_t n) const { return n; }
  void pack(int64_t key, int64_t count, const KeyRow& row, float* k, float* v, float* scratch) const {
    if (!row.k) return;
    kernels.to_f32(row.k, cache, d, scratch);
    float* to = k + key / panel * panel * d + key % panel;
    for (int64_t i = 0; i < d; ++i) to[i * panel] = scratch[i];
    kernels.to_f32(row.v, cache, dv, scratch);
    std::fill(scratch + dv, scratch + columns, 0.0f);
    for (int64_t i = 0; i < columns; i += panel) std::copy_n(scratch + i, panel, v + i * count + key * panel);
  }
  void pack(int64_t key, int64_t count, const KeyRow& even, const KeyRow& odd, float* k, float* v, float* scratch) const {
    pack(key, count, even, k, v, scratch);
    pack(key + 1, count, odd, k, v, scratch);
  }
  void put_row(const float* x, int64_t n, float* row) const { kernels.round_to(x, n, compute, row); }
  const float* panel_of_keys(const float* k, int64_t key) const { return k + key * d; }
  const float* panel_of_values(const float* v, int64_t column, int64_t count) const { return v + column * count; }
  void multiply(const float* of, int64_t n, const float* const* rows, int64_t m, float* const* out) const {
    kernels.weighted_sum(of, panel, DType::kF32, n, rows, m, panel, out);
  }
};

// Pairs of bf16, of neighbouring columns of K and of neighbouring keys of V: weighted_pairs(). The weights of V are rounded to bf16.
struct PairForm {
  const cpu::Kernels& kernels;
  DType compute, cache;
  int64_t d, dv, columns;
  int64_t panel = kernels.block_columns;

  int64_t key_size() const { return ceil_div(d, 2); }
  int64_t row_size(int64_t n) const { return ceil_div(n, 2); }
  void pack(int64_t key, int64_t count, const KeyRow& even, const KeyRow& odd, float* k, float* v, float*) const {
    const auto pack_key = [&](int64_t of, const void* columns_of) {
      const uint16_t* from = static_cast<const uint16_t*>(columns_of);
      uint32_t* to = reinterpret_cast<uint32_t*>(k) + of / panel * panel * key_size() + of % panel;
      for (int64_t i = 0; i < d / 2; ++i) to[i * panel] = from[2 * i] | uint32_t(from[2 * i + 1]) << 16;
      if (d % 2 != 0) to[d / 2 * panel] = from[d - 1];
    };
    pack_key(key, even.k);
    if (odd.k) pack_key(key + 1, odd.k);
    const uint16_t *a = static_cast<const uint16_t*>(even.v), *b = static_cast<const uint16_t*>(odd.v);
    uint32_t* to = reinterpret_cast<uint32_t*>(v) + key / 2 * panel;
    for (int64_t i = 0; i < columns; i += panel, to += panel * ceil_div(count, 2)) {
      const int64_t n = std::clamp<int64_t>(dv - i, 0, panel);
      if (b)
        for (int64_t c = 0; c < n; ++c) to[c] = a[i + c] | uint32_t(b[i + c]) << 16;
      else
        std::copy_n(a + i, n, to);
      std::fill(to + n, to + panel, 0);
    }
  }
  void put_row(const float* x, int64_t n, float* row) const {
    uint16_t* to = reinterpret_cast<uint16_t*>(row);
    kernels.from_f32(x, n, DType::kBF16, to);
    if (n % 2 != 0) to[n] = 0;
  }
  const float* panel_of_keys(const float* k, int64_t key) const { return k + key * key_size(); }
  const float* panel_of_values(const float* v, int64_t column, int64_t count) const { return v + column * ceil_div(count, 2); }
  void multiply(const float* of, int64_t n, const float* const* rows, int64_t m, float* const* out) const {
    kernels.weighted_pairs(of, ceil_div(n, 2), rows, m, out);
  }
};

}  // namespace

template <class Form>
void CpuBackend::attend_tile_fully(const AttentionCall& c, const AttentionTile& tile, int64_t head, int thread, float* states) {
  const KvCacheView& cache = c.cache;
  const int64_t d = cache.head_dim, dv = cache.v_columns(), group = c.group(), columns = sum_columns(cache),
                size = state_size(cache);
  const Form form{kernels_, compute_dtype_, cache.dtype, d, dv, columns};
  const int64_t panel = form.panel, m = tile.rows * group, most = std::min(kRows, m);
  const int64_t keys = c.end_of(c.batch.query_start[tile.seq + 1] - 1);
  const int32_t* table = c.batch.block_tables + tile.seq * c.batch.max_blocks;
  void* const values = cache.v ? cache.v : cache.k;
  const int64_t value_width = cache.v ? dv : d, q_size = form.row_size(d), p_size = form.row_size(kSpan);
  // K and V of a span, the scores of rows and their exponentials as rows of the product, queries, states
  float* packed_k = tile_[size_t(thread)].get(kSpan * (d + 1 + columns) + most * (kSpan + p_size + q_size + size) + d + columns);
  float *packed_v = packed_k + kSpan * (d + 1), *scores = packed_v + kSpan * columns, *weights = scores + most * kSpan;
  float *queries = weights + most * p_size, *parts = queries + most * q_size, *scratch = parts + most * size;
  const auto key_row = [&](int64_t key) -> KeyRow {
    if (key >= keys) return {};
    const int64_t block = table[key / cache.block_size], offset = key % cache.block_size * dtype_size(cache.dtype);
    return {page(cache.k, cache, d, block, head) + offset * d,
            page(values, cache, value_width, block, head) + offset * value_width};
  };
  for (int64_t first = 0; first < keys; first += kSpan) {
    const int64_t count = std::min(kSpan, keys - first), padded = round_up(count, panel);
    if (padded > count) std::fill_n(packed_k, padded * form.key_size(), 0.0f);
    for (int64_t key = 0; key < count; key += 2)
      form.pack(key, count, key_row(first + key), key_row(first + key + 1), packed_k, packed_v, scratch);
    for (int64_t j0 = 0; j0 < m; j0 += kRows) {
      const int64_t n = std::min(kRows, m - j0);
      float* const results = first == 0 ? states + j0 * size : parts;
      const float* from[kRows];
      float* to[kRows];
      for (int64_t j = 0; j < n; ++j) {
        const int64_t t = tile.first + (j0 + j) / group, h = head * group + (j0 + j) % group;
        from[j] = queries + j * q_size;
        form.put_row(c.args.q + t * c.args.q_stride + h * (c.args.gated ? 2 * d : d), d, queries + j * q_size);
      }
      std::fill_n(scores, n * kSpan, 0.0f);
      for (int64_t key = 0; key < padded; key += panel) {
        for (int64_t j = 0; j < n; ++j) to[j] = scores + j * kSpan + key;
        form.multiply(form.panel_of_keys(packed_k, key), d, from, n, to);
      }
      for (int64_t j = 0; j < n; ++j) {
        float* row = scores + j * kSpan;
        kernels_.exponentials(row, count, c.args.scale, results + j * size + columns);
        std::fill_n(results + j * size, columns, 0.0f);
        if constexpr (std::is_same_v<Form, PairForm>) {
          form.put_row(row, count, weights + j * p_size);
          from[j] = weights + j * p_size;
        } else {
          from[j] = row;
        }
      }
      for (int64_t i = 0; i < columns; i += panel) {
        for (int64_t j = 0; j < n; ++j) to[j] = results + j * size + i;
        form.multiply(form.panel_of_values(packed_v, i, count), count, from, n, to);
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
  const bool pairs = c.cache.dtype == DType::kBF16 && compute_dtype_ == DType::kBF16 && kernels_.weighted_pairs;
  const int64_t tile_size = most_rows * group * state_size(c.cache);
  float* states = spans_.get(pool_.num_threads() * tile_size);
  pool_.parallel_for(int64_t(tiles_.size()) * g, [&](int64_t task, int thread) {
    const AttentionTile& tile = tiles_[size_t(task / g)];
    float* of_tile = states + thread * tile_size;
    if (pairs)
      attend_tile_fully<PairForm>(c, tile, task % g, thread, of_tile);
    else
      attend_tile_fully<FloatForm>(c, tile, task % g, thread, of_tile);
    finish_rows(c, tile, task % g, thread, false, of_tile);
  });
}

}  // namespace lynx_rt
