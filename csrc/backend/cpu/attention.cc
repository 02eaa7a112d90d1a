// qkv_post() and attention() over the paged KV cache.
// Attention work split: a task is (sequence, kv head, tile of query rows); all query heads of the kv head share each page that
// is read. Per row: all scores, then one softmax over them, then the weighted sum of V page by page. Each step's order
// depends on the row's own length alone, so a row gets the same bits in a prefill chunk of any size and in decode.
// Bytes: K and V of the sequence, once per tile. Limit: memory bandwidth in decode.
#include <cstring>

#include "backend/cpu/cpu_backend.h"

namespace lynx_rt {

namespace {

constexpr int64_t kTileHeads = 16;  // query rows x heads per task: bounds the score buffer

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

void CpuBackend::do_attention(const float* q, int64_t q_stride, int64_t num_heads, float scale, const BatchView& batch,
                              const KvCacheView& cache, float* out) {
  int64_t d = cache.head_dim, group = num_heads / cache.num_kv_heads, page_size = cache.block_size;
  int64_t tile = std::max<int64_t>(1, kTileHeads / group);  // query rows per task
  int64_t tasks = 0;
  for (int64_t s = 0; s < batch.num_seqs; ++s) tasks += ceil_div(batch.query_start[s + 1] - batch.query_start[s], tile);

  pool_.parallel_for(tasks * cache.num_kv_heads, [&](int64_t task, int thread) {
    int64_t head = task % cache.num_kv_heads, index = task / cache.num_kv_heads, s = 0;
    for (;; ++s) {
      int64_t tiles = ceil_div(batch.query_start[s + 1] - batch.query_start[s], tile);
      if (index < tiles) break;
      index -= tiles;
    }
    int64_t first = batch.query_start[s] + index * tile;
    int64_t rows = std::min<int64_t>(tile, batch.query_start[s + 1] - first), m = rows * group;
    const int32_t* table = batch.block_tables + s * batch.max_blocks;
    int64_t shortest = batch.positions[first] + 1, longest = batch.positions[first + rows - 1] + 1;
    int64_t stride = round_up(longest, page_size);

    RowGroup x{nullptr, key_product_.row_bytes(d)};
    x.data = query_[size_t(thread)].get(std::min<int64_t>(64, m) * x.row_bytes);
    float* scores = tile_[size_t(thread)].get(m * (stride + d));
    float* sums = scores + m * stride;
    const float* p[64];
    float* acc[64];
    // Wide groups are walked in slices, so that the arrays above have a fixed size.
    for (int64_t j0 = 0; j0 < m; j0 += 64) {
      int64_t n = std::min<int64_t>(64, m - j0);
      for (int64_t j = 0; j < n; ++j) {
        int64_t row = first + (j0 + j) / group, h = head * group + (j0 + j) % group;
        const float* query = q + row * q_stride + h * d;
        key_product_.pack(&query, 1, 0, d, x.from(j));
        p[j] = scores + (j0 + j) * stride;
        acc[j] = sums + (j0 + j) * d;
      }
      for (int64_t b = 0; b * page_size < longest; ++b) {
        const WeightView keys{page(cache.k, cache, table[b], head), cache.dtype, page_size, d};
        key_product_.run(keys, 0, std::min(page_size, longest - b * page_size), x, n, scores + j0 * stride + b * page_size,
                         stride, false);
      }
      for (int64_t j = 0; j < n; ++j)
        kernels_.softmax(scores + (j0 + j) * stride, batch.positions[first + (j0 + j) / group] + 1, scale);
      std::memset(acc[0], 0, size_t(n * d) * 4);
      int64_t whole = shortest / page_size;  // pages that every row of the tile attends to in full
      for (int64_t b = 0; b < whole; ++b) {
        kernels_.weighted_sum(page(cache.v, cache, table[b], head), cache.dtype, page_size, p, n, d, acc);
        for (int64_t j = 0; j < n; ++j) p[j] += page_size;
      }
      for (int64_t j = 0; j < n; ++j) {
        int64_t length = batch.positions[first + (j0 + j) / group] + 1;
        for (int64_t b = whole; b * page_size < length; ++b) {
          kernels_.weighted_sum(page(cache.v, cache, table[b], head), cache.dtype, std::min(page_size, length - b * page_size),
                                p + j, 1, d, acc + j);
          p[j] += page_size;
        }
        int64_t row = first + (j0 + j) / group, h = head * group + (j0 + j) % group;
        std::memcpy(out + (row * num_heads + h) * d, acc[j], size_t(d) * 4);
      }
    }
  });
}

}  // namespace lynx_rt
