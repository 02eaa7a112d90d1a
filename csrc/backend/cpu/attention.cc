// qkv_post(), mla_post() and attention() over the paged KV cache; without a causal mask it is in full_attention.cc.
// Work split of attention(): a task is (sequence, tile of query rows, kv head, span of kSpan keys), or all spans of a tile where
// their results would be too large. All query heads of the kv head share each page that is read. A row and span take all scores,
// then their exponentials relative to the span's largest, then the weighted sum of V page by page; at last the spans are merged in
// rising order. Keys before a row's window take no part, and spans before the windows of all rows of a tile are skipped.
// Spans begin at multiples of kSpan keys, so the order of every sum depends on the row's own length alone, and a row gets the same
// bits in a prefill chunk of any size and in decode, on any number of threads.
// Bytes: K and V of the sequence, once per tile. Limit: memory bandwidth in decode.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/cpu/attention_call.h"

namespace lynx_rt {

namespace {

constexpr int64_t kTileHeads = 16;        // most query rows x heads of a tile, if its rows are several: bounds the score buffer
constexpr int64_t kSlice = 64;            // rows x heads computed at a time: bounds the arrays of pointers
constexpr int64_t kAtOnce = 8;            // keys of a page between two prefetches
constexpr int64_t kApartBytes = 4 << 20;  // largest size of the spans' results where each span is a task

}  // namespace

void CpuBackend::rotate(float* head, const RopeTable& rope, int64_t position) const {
  if (rope.dim == 0) return;
  const int64_t half = rope.dim / 2;
  (rope.interleaved ? kernels_.rope_interleaved : kernels_.rope)(head, rope.cos + position * half, rope.sin + position * half,
                                                                 half);
}

// Stores `row` at the slot's place among the pages at `base`, whose heads are `width` columns.
void CpuBackend::store(const float* row, int64_t columns, void* base, const KvCacheView& cache, int64_t width, int64_t head,
                       int64_t slot) const {
  const int64_t block = slot / cache.block_size, offset = slot % cache.block_size;
  kernels_.from_f32(row, columns, cache.dtype, page(base, cache, width, block, head) + offset * width * dtype_size(cache.dtype));
}

void CpuBackend::do_qkv_post(const QkvPostArgs& args, const BatchView& batch, const KvCacheView& cache) {
  const int64_t d = cache.head_dim, a = args.num_heads, g = cache.num_kv_heads, q_head = args.gated ? 2 * d : d;
  const QkNorm norm = args.norm;
  pool_.parallel_for(batch.num_rows, [&](int64_t t, int) {
    float *row = args.qkv + t * (a * q_head + 2 * g * d), *k = row + a * q_head, *v = k + g * d;
    const auto head = [&](int64_t h) { return h < a ? row + h * q_head : k + (h - a) * d; };
    const auto norm_row = [&](float* x, const WeightView& w, int64_t n) { kernels_.rmsnorm(x, w.data, w.dtype, n, args.eps, x); };
    if (args.v_from_k) std::copy_n(k, g * d, v);
    for (int64_t h = 0; args.v_norm && h < g; ++h) norm_row(v + h * d, {}, d);
    if (norm == QkNorm::kWidth) {
      norm_row(row, args.q_norm, a * d);
      norm_row(k, args.k_norm, g * d);
    }
    if (norm == QkNorm::kHead)
      for (int64_t h = 0; h < a + g; ++h) norm_row(head(h), h < a ? args.q_norm : args.k_norm, d);
    if (args.clip > 0)
      for (int64_t i = 0; i < (a + 2 * g) * d; ++i) row[i] = std::clamp(row[i], -args.clip, args.clip);
    for (int64_t h = 0; h < a + g; ++h) rotate(head(h), args.rope, batch.rope()[t]);
    if (norm == QkNorm::kHeadAfterRope || norm == QkNorm::kUnitAfterRope)
      for (int64_t h = 0; h < a + g; ++h) norm_row(head(h), h < a ? args.q_norm : args.k_norm, d);
    if (args.temperature_floor > 0) {
      const float grown = std::log1p(std::floor((float(batch.positions[t]) + 1.0f) / args.temperature_floor));
      const float by = grown * args.temperature_scale + 1.0f;
      for (int64_t i = 0; i < a * d; ++i) row[i] *= by;
    }
    for (int64_t h = 0; h < g; ++h) {
      store(k + h * d, d, cache.k, cache, d, h, batch.slots[t]);
      store(v + h * d, d, cache.v, cache, d, h, batch.slots[t]);
    }
  });
}

void CpuBackend::do_mla_post(const MlaPostArgs& args, const BatchView& batch, const KvCacheView& cache) {
  const int64_t latent = cache.v_columns(), width = cache.head_dim, rotated = args.rope.dim;
  pool_.parallel_for(batch.num_rows, [&](int64_t t, int) {
    float* kv = args.kv + t * width;
    kernels_.rmsnorm(kv, args.kv_norm.data, args.kv_norm.dtype, latent, args.eps, kv);
    rotate(kv + latent, args.rope, batch.rope()[t]);
    store(kv, width, cache.k, cache, width, 0, batch.slots[t]);
    for (int64_t h = 0; h < args.num_heads; ++h) {
      const float* q = args.q + (t * args.num_heads + h) * (args.nope + rotated) + args.nope;
      float* to = args.latent_q + (t * args.num_heads + h) * width + latent;
      std::copy_n(q, rotated, to);
      rotate(to, args.rope, batch.rope()[t]);
    }
  });
}

// The state of one query row and head after some spans, with C = sum_columns(): [0, C) weighted sum of V, in blocks as weighted_sum()
// has them, [C] largest score, [C + 1] sum of exponentials, 0 where the row has no key in the spans.
int64_t CpuBackend::sum_columns(const KvCacheView& cache) const { return round_up(cache.v_columns(), kernels_.block_columns); }
int64_t CpuBackend::state_size(const KvCacheView& cache) const { return round_up(sum_columns(cache) + 2, 16); }  // whole lines

// Fills the states of the tile's rows and heads.
void CpuBackend::attend_span(const AttentionCall& c, const AttentionTile& tile, int64_t head, int64_t span, int thread,
                             float* states) {
  const KvCacheView& cache = c.cache;
  const int64_t d = cache.head_dim, dv = cache.v_columns(), columns = sum_columns(cache), group = c.group(),
                page_size = cache.block_size;
  const int64_t m = tile.rows * group, last_row = tile.first + tile.rows - 1;
  const int64_t begin = span * kSpan, end = std::min(begin + kSpan, c.end_of(last_row));
  const int64_t first = std::max(begin, c.begin_of(tile.first));  // the first key of any row
  const int32_t* table = c.batch.block_tables + tile.seq * c.batch.max_blocks;
  void* const values = cache.v ? cache.v : cache.k;
  const int64_t value_width = cache.v ? dv : d;
  // Calls visit(key, count, block, offset) for the parts of pages that hold keys [from, to), of K or V in rows of `width` columns.
  // Pages may be anywhere, so the CPU's own prefetchers do not find the next one: each part prefetches the same part of the next page.
  const auto for_each_part = [&](void* of, int64_t width, int64_t from, int64_t to, auto visit) {
    const int64_t row_bytes = width * dtype_size(cache.dtype);
    for (int64_t key = from; key < to;) {
      const int64_t offset = key % page_size, count = std::min({kAtOnce, page_size - offset, to - key});
      if (key - offset + page_size < to) {
        const char* next = page(of, cache, width, table[key / page_size + 1], head) + offset * row_bytes;
        for (int64_t i = 0; i < count * row_bytes; i += 64) __builtin_prefetch(next + i);
      }
      visit(key, count, table[key / page_size], offset);
      key += count;
    }
  };
  RowGroup x{nullptr, key_product().row_bytes(d)};
  x.data = query_[size_t(thread)].get(std::min(kSlice, m) * x.row_bytes);
  float* scores = tile_[size_t(thread)].get(std::min(kSlice, m) * kSpan);  // a row's begin with key `first`
  for (int64_t j0 = 0; j0 < m; j0 += kSlice) {
    const int64_t n = std::min(kSlice, m - j0);
    const float* p[kSlice];
    float* sums[kSlice];
    int64_t from[kSlice], to[kSlice];  // keys of each row
    for (int64_t j = 0; j < n; ++j) {
      const int64_t row = tile.first + (j0 + j) / group, h = head * group + (j0 + j) % group;
      p[j] = c.args.q + row * c.args.q_stride + h * (c.args.gated ? 2 * d : d);
      sums[j] = states + (j0 + j) * state_size(cache);
      from[j] = std::max(first, c.begin_of(row));
      to[j] = std::min(end, c.end_of(row));
    }
    key_product().pack(p, n, 0, d, x);
    if (key_product().takes_pieces()) {
      const void* keys[kSpan];
      int32_t counts[kSpan];
      int64_t pieces = 0;
      for (int64_t key = first; key < end; key += counts[pieces++]) {
        const int64_t offset = key % page_size;
        keys[pieces] = page(cache.k, cache, d, table[key / page_size], head) + offset * d * dtype_size(cache.dtype);
        counts[pieces] = int32_t(std::min({RowGroup::kRows, page_size - offset, end - key}));
      }
      key_product().run_pieces(keys, counts, pieces, d, x, n, scores, kSpan);
    } else {
      for_each_part(cache.k, d, first, end, [&](int64_t key, int64_t count, int64_t block, int64_t offset) {
        const WeightView keys{page(cache.k, cache, d, block, head), cache.dtype, page_size, d};
        key_product().run(keys, offset, count, x, n, scores + key - first, kSpan, false, nullptr);
      });
    }
    for (int64_t j = 0; j < n; ++j) {
      sums[j][columns + 1] = 0;
      if (from[j] >= to[j]) continue;
      std::memset(sums[j], 0, size_t(columns) * 4);
      kernels_.exponentials(scores + j * kSpan + from[j] - first, to[j] - from[j], c.args.scale, sums[j] + columns);
    }
    const auto add_values = [&](int64_t begin_key, int64_t end_key, int64_t first_row, int64_t rows) {
      for_each_part(values, value_width, begin_key, end_key, [&](int64_t key, int64_t count, int64_t block, int64_t offset) {
        for (int64_t j = first_row; j < first_row + rows; ++j) p[j] = scores + j * kSpan + key - first;
        const char* v = page(values, cache, value_width, block, head) + offset * value_width * dtype_size(cache.dtype);
        kernels_.weighted_sum(v, value_width, cache.dtype, count, p + first_row, rows, dv, sums + first_row);
      });
    };
    // Keys that every row sees are added to all rows at once. Each row's sum is still in rising order of keys.
    const int64_t shared_from = from[n - 1], shared_to = std::max(shared_from, to[0]);
    for (int64_t j = 0; j < n; ++j) add_values(from[j], std::min(shared_from, to[j]), j, 1);
    add_values(shared_from, shared_to, 0, n);
    for (int64_t j = 0; j < n; ++j) add_values(std::max(shared_to, from[j]), to[j], j, 1);
  }
}

void CpuBackend::merge_span(const AttentionCall& c, const AttentionTile& tile, const float* states, float* merged) {
  const int64_t columns = sum_columns(c.cache), size = state_size(c.cache);
  for (int64_t j = 0; j < tile.rows * c.group(); ++j) {
    const float* part = states + j * size;
    float* into = merged + j * size;
    if (part[columns + 1] == 0) continue;  // the row has no keys in this span
    if (into[columns + 1] == 0)
      std::copy_n(part, size, into);
    else
      kernels_.merge(part, columns, c.args.scale, into);
  }
}

void CpuBackend::finish_rows(const AttentionCall& c, const AttentionTile& tile, int64_t head, int thread, bool pairs,
                             float* states) {
  const AttentionArgs& args = c.args;
  const int64_t dv = c.cache.v_columns(), columns = sum_columns(c.cache), size = state_size(c.cache);
  for (int64_t j = 0; j < tile.rows * c.group(); ++j) {
    const int64_t row = tile.first + j / c.group(), h = head * c.group() + j % c.group();
    float* state = states + j * size;
    if (!args.sinks.empty()) {  // a sink is a key without a value, merged like a span
      float* sink = tile_[size_t(thread)].get(size);
      std::fill_n(sink, columns, 0.0f);
      kernels_.to_f32(static_cast<const char*>(args.sinks.data) + h * dtype_size(args.sinks.dtype), args.sinks.dtype, 1,
                      sink + columns);
      sink[columns] /= args.scale;
      sink[columns + 1] = 1;
      kernels_.merge(sink, columns, args.scale, state);
    }
    const float inverse = 1.0f / state[columns + 1];
    if (pairs) kernels_.join_pairs(state, columns);
    float* to = c.out + (row * args.num_heads + h) * dv;
    for (int64_t i = 0; i < dv; ++i) to[i] = state[i] * inverse;
    if (args.gated) kernels_.sigmoid_mul(args.q + row * args.q_stride + (2 * h + 1) * dv, dv, to);
  }
}

void CpuBackend::do_attention(const AttentionArgs& args, const BatchView& batch, const KvCacheView& cache, const RowsOut& out) {
  const AttentionCall call{args, batch, cache, out.f32};
  if (!args.causal) return attend_fully(call);
  const int64_t g = cache.num_kv_heads, size = state_size(cache);
  const int64_t most_rows = std::max<int64_t>(1, kTileHeads / call.group());  // of a tile
  tiles_.clear();
  int64_t spans = 0;
  for (int64_t s = 0; s < batch.num_seqs; ++s)
    for (int64_t row = batch.query_start[s]; row < batch.query_start[s + 1]; row += most_rows) {
      tiles_.push_back({s, row, std::min<int64_t>(most_rows, batch.query_start[s + 1] - row), spans});
      spans += call.num_spans(tiles_.back());
    }
  const int64_t tile_size = most_rows * call.group() * size;
  if (spans * g * tile_size * 4 <= kApartBytes) {  // each span is a task
    float* states = spans_.get(spans * g * tile_size);
    pool_.parallel_for(spans * g, [&](int64_t task, int thread) {
      const int64_t index = task / g;
      const auto after = std::upper_bound(tiles_.begin(), tiles_.end(), index,
                                          [](int64_t i, const AttentionTile& t) { return i < t.first_task; });
      const AttentionTile& tile = *(after - 1);
      attend_span(call, tile, task % g, call.first_span(tile) + index - tile.first_task, thread, states + task * tile_size);
    });
    pool_.parallel_for(int64_t(tiles_.size()) * g, [&](int64_t task, int thread) {
      const AttentionTile& tile = tiles_[size_t(task / g)];
      float* first = states + (tile.first_task * g + task % g) * tile_size;
      for (int64_t span = 1; span < call.num_spans(tile); ++span) merge_span(call, tile, first + span * g * tile_size, first);
      finish_rows(call, tile, task % g, thread, cache.dtype == DType::kBF16, first);
    });
    return;
  }
  float* states = spans_.get(2 * pool_.num_threads() * tile_size);
  pool_.parallel_for(int64_t(tiles_.size()) * g, [&](int64_t task, int thread) {
    const AttentionTile& tile = tiles_[size_t(task / g)];
    float *merged = states + 2 * thread * tile_size, *next = merged + tile_size;
    for (int64_t span = 0; span < call.num_spans(tile); ++span) {
      attend_span(call, tile, task % g, call.first_span(tile) + span, thread, span == 0 ? merged : next);
      if (span > 0) merge_span(call, tile, next, merged);
    }
    finish_rows(call, tile, task % g, thread, cache.dtype == DType::kBF16, merged);
  });
}

}  // namespace lynx_rt
