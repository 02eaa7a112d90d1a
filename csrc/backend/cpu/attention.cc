// qkv_post() and attention() over the paged KV cache.
// Attention work split: (sequence, tile of query rows, kv head, span of kSpan keys); all query heads of the kv head share each
// page that is read. Per row and span: all scores, then their exponentials relative to the span's largest, then the weighted sum
// of V page by page; then the spans are merged in rising order. Spans begin at multiples of kSpan keys, so each step's order
// depends on the row's own length alone, and a row gets the same bits in a prefill chunk of any size and in decode, on any number
// of threads. Bytes: K and V of the sequence, once per tile. Limit: memory bandwidth in decode.
#include <algorithm>
#include <cstring>

#include "backend/cpu/cpu_backend.h"

namespace lynx_rt {

namespace {

constexpr int64_t kTileHeads = 16;        // query rows x heads of a tile: bounds the score buffer
constexpr int64_t kSlice = 64;            // of a tile of wide groups: bounds the arrays of pointers
constexpr int64_t kSpan = 512;            // keys
constexpr int64_t kAtOnce = 8;            // keys of a page between two prefetches
constexpr int64_t kApartBytes = 4 << 20;  // results that spans may wait in to be merged

char* page(void* base, const KvCacheView& cache, int64_t block, int64_t head) {
  return static_cast<char*>(base) +
         (block * cache.num_kv_heads + head) * cache.block_size * cache.head_dim * dtype_size(cache.dtype);
}

}  // namespace

void CpuBackend::do_qkv_post(const QkvPostArgs& args, const BatchView& batch, const KvCacheView& cache) {
  int64_t d = cache.head_dim, a = args.num_heads, g = cache.num_kv_heads;
  pool_.parallel_for(batch.num_rows, [&](int64_t t, int) {
    float* row = args.qkv + t * (a + 2 * g) * d;
    const float* cos = args.rope.cos + int64_t(batch.positions[t]) * (d / 2);
    const float* sin = args.rope.sin + int64_t(batch.positions[t]) * (d / 2);
    for (int64_t h = 0; h < a + g; ++h) {
      const WeightView& norm = h < a ? args.q_norm : args.k_norm;
      if (!norm.empty()) kernels_.rmsnorm(row + h * d, norm.data, norm.dtype, d, args.eps, row + h * d);
      kernels_.rope(row + h * d, cos, sin, d / 2);
    }
    int64_t block = batch.slots[t] / cache.block_size, offset = batch.slots[t] % cache.block_size;
    int64_t row_bytes = d * dtype_size(cache.dtype);
    for (int64_t h = 0; h < g; ++h) {
      kernels_.from_f32(row + (a + h) * d, d, cache.dtype, page(cache.k, cache, block, h) + offset * row_bytes);
      kernels_.from_f32(row + (a + g + h) * d, d, cache.dtype, page(cache.v, cache, block, h) + offset * row_bytes);
    }
  });
}

struct CpuBackend::AttentionCall {
  const float* q;
  int64_t q_stride, num_heads;
  float scale;
  const BatchView& batch;
  const KvCacheView& cache;

  int64_t group() const { return num_heads / cache.num_kv_heads; }
  int64_t keys_of(int64_t row) const { return batch.positions[row] + 1; }
};

// What is known of one query row and head after some spans: [0, D) weighted sum of V, [D] largest score, [D + 1] sum of
// exponentials.
static int64_t state_size(const KvCacheView& cache) { return cache.head_dim + 2; }

// Fills the states of the tile's rows and heads; those of rows that end before the span stay as they are.
void CpuBackend::attend_span(const AttentionCall& c, const AttentionTile& tile, int64_t head, int64_t span, int thread,
                             float* states) {
  const KvCacheView& cache = c.cache;
  const int64_t d = cache.head_dim, group = c.group(), page_size = cache.block_size, m = tile.rows * group;
  const int64_t begin = span * kSpan, end = std::min(begin + kSpan, c.keys_of(tile.first + tile.rows - 1));
  const int32_t* table = c.batch.block_tables + tile.seq * c.batch.max_blocks;
  const int64_t row_bytes = d * dtype_size(cache.dtype);
  // visit(key, count, block, offset): the parts of pages that hold keys [from, to), `of` K or V. Pages lie anywhere,
  // so the CPU's own prefetchers do not see the next one: each part fetches its counterpart there.
  const auto for_each_part = [&](void* of, int64_t from, int64_t to, auto visit) {
    for (int64_t key = from; key < to;) {
      const int64_t offset = key % page_size, count = std::min({kAtOnce, page_size - offset, to - key});
      if (key - offset + page_size < to) {
        const char* next = page(of, cache, table[key / page_size + 1], head) + offset * row_bytes;
        for (int64_t i = 0; i < count * row_bytes; i += 64) __builtin_prefetch(next + i);
      }
      visit(key, count, table[key / page_size], offset);
      key += count;
    }
  };
  RowGroup x{nullptr, key_product().row_bytes(d)};
  x.data = query_[size_t(thread)].get(std::min(kSlice, m) * x.row_bytes);
  float* scores = tile_[size_t(thread)].get(std::min(kSlice, m) * kSpan);
  for (int64_t j0 = 0; j0 < m; j0 += kSlice) {
    const int64_t n = std::min(kSlice, m - j0);
    const float* p[kSlice];
    float* sums[kSlice];
    int64_t length[kSlice];
    for (int64_t j = 0; j < n; ++j) {
      const int64_t row = tile.first + (j0 + j) / group, h = head * group + (j0 + j) % group;
      p[j] = c.q + row * c.q_stride + h * d;
      sums[j] = states + (j0 + j) * state_size(cache);
      length[j] = std::min(c.keys_of(row), end) - begin;
    }
    key_product().pack(p, n, 0, d, x);
    if (key_product().takes_pieces()) {
      const void* keys[kSpan];
      int32_t counts[kSpan];
      int64_t pieces = 0;
      for (int64_t key = begin; key < end; key += counts[pieces++]) {
        const int64_t offset = key % page_size;
        keys[pieces] = page(cache.k, cache, table[key / page_size], head) + offset * row_bytes;
        counts[pieces] = int32_t(std::min({RowGroup::kRows, page_size - offset, end - key}));
      }
      key_product().run_pieces(keys, counts, pieces, d, x, n, scores, kSpan);
    } else {
      for_each_part(cache.k, begin, end, [&](int64_t key, int64_t count, int64_t block, int64_t offset) {
        const WeightView keys{page(cache.k, cache, block, head), cache.dtype, page_size, d};
        key_product().run(keys, offset, count, x, n, scores + key - begin, kSpan, false);
      });
    }
    for (int64_t j = 0; j < n; ++j) {
      p[j] = scores + j * kSpan;
      if (length[j] <= 0) continue;
      std::memset(sums[j], 0, size_t(d) * 4);
      kernels_.exponentials(scores + j * kSpan, length[j], c.scale, sums[j] + d);
    }
    const auto add_values = [&](int64_t from, int64_t to, int64_t first, int64_t rows) {
      for_each_part(cache.v, begin + from, begin + to, [&](int64_t, int64_t count, int64_t block, int64_t offset) {
        const char* v = page(cache.v, cache, block, head) + offset * row_bytes;
        kernels_.weighted_sum(v, cache.dtype, count, p + first, rows, d, sums + first);
        for (int64_t j = first; j < first + rows; ++j) p[j] += count;
      });
    };
    const int64_t shared = std::max<int64_t>(0, length[0]);  // keys that every row of the tile attends to
    add_values(0, shared, 0, n);
    for (int64_t j = 0; j < n; ++j) add_values(shared, length[j], j, 1);
  }
}

void CpuBackend::merge_span(const AttentionCall& c, const AttentionTile& tile, int64_t span, const float* states, float* merged) {
  const int64_t d = c.cache.head_dim, size = state_size(c.cache);
  for (int64_t j = 0; j < tile.rows * c.group(); ++j) {
    if (c.keys_of(tile.first + j / c.group()) <= span * kSpan) continue;  // the row ends before the span
    kernels_.merge(states + j * size, d, c.scale, merged + j * size);
  }
}

void CpuBackend::do_attention(const float* q, int64_t q_stride, int64_t num_heads, float scale, const BatchView& batch,
                              const KvCacheView& cache, float* out) {
  const AttentionCall call{q, q_stride, num_heads, scale, batch, cache};
  const int64_t d = cache.head_dim, g = cache.num_kv_heads, size = state_size(cache);
  const int64_t most_rows = std::max<int64_t>(1, kTileHeads / call.group());  // of a tile
  tiles_.clear();
  int64_t spans = 0;
  for (int64_t s = 0; s < batch.num_seqs; ++s)
    for (int64_t row = batch.query_start[s]; row < batch.query_start[s + 1]; row += most_rows) {
      const int64_t rows = std::min<int64_t>(most_rows, batch.query_start[s + 1] - row);
      tiles_.push_back({s, row, rows, spans});
      spans += ceil_div(call.keys_of(row + rows - 1), kSpan);
    }
  const auto spans_of = [&](const AttentionTile& tile) { return ceil_div(call.keys_of(tile.first + tile.rows - 1), kSpan); };
  const auto finish = [&](const AttentionTile& tile, int64_t head, const float* merged) {
    for (int64_t j = 0; j < tile.rows * call.group(); ++j) {
      const int64_t row = tile.first + j / call.group(), h = head * call.group() + j % call.group();
      const float inverse = 1.0f / merged[j * size + d + 1];
      for (int64_t i = 0; i < d; ++i) out[(row * num_heads + h) * d + i] = merged[j * size + i] * inverse;
    }
  };

  const int64_t tile_size = most_rows * call.group() * size;
  if (spans * g * tile_size * 4 <= kApartBytes) {  // each span is a task
    float* states = spans_.get(spans * g * tile_size);
    pool_.parallel_for(spans * g, [&](int64_t task, int thread) {
      const int64_t index = task / g;
      const auto after = std::upper_bound(tiles_.begin(), tiles_.end(), index,
                                          [](int64_t i, const AttentionTile& t) { return i < t.first_span; });
      const AttentionTile& tile = *(after - 1);
      attend_span(call, tile, task % g, index - tile.first_span, thread, states + task * tile_size);
    });
    pool_.parallel_for(int64_t(tiles_.size()) * g, [&](int64_t task, int) {
      const AttentionTile& tile = tiles_[size_t(task / g)];
      float* first = states + (tile.first_span * g + task % g) * tile_size;
      for (int64_t span = 1; span < spans_of(tile); ++span) merge_span(call, tile, span, first + span * g * tile_size, first);
      finish(tile, task % g, first);
    });
    return;
  }
  float* states = spans_.get(2 * pool_.num_threads() * tile_size);
  pool_.parallel_for(int64_t(tiles_.size()) * g, [&](int64_t task, int thread) {
    const AttentionTile& tile = tiles_[size_t(task / g)];
    float *merged = states + 2 * thread * tile_size, *next = merged + tile_size;
    for (int64_t span = 0; span < spans_of(tile); ++span) {
      attend_span(call, tile, task % g, span, thread, span == 0 ? merged : next);
      if (span > 0) merge_span(call, tile, span, next, merged);
    }
    finish(tile, task % g, merged);
  });
}

}  // namespace lynx_rt
