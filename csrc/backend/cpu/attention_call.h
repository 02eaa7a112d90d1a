// What the tasks of one attention() call share.
#pragma once
#include <algorithm>

#include "backend/cpu/cpu_backend.h"

namespace lynx_rt {

constexpr int64_t kSpan = 512;  // keys whose scores a row has at once; spans begin at multiples of it

// Returns the address of a head's page of K (width D) or V (width Dv).
inline char* page(void* base, const KvCacheView& cache, int64_t width, int64_t block, int64_t head) {
  return static_cast<char*>(base) + (block * cache.num_kv_heads + head) * cache.block_size * width * dtype_size(cache.dtype);
}

struct CpuBackend::AttentionCall {
  const AttentionArgs& args;
  const BatchView& batch;
  const KvCacheView& cache;
  float* out;  // [T, A * Dv]

  int64_t group() const { return args.num_heads / cache.num_kv_heads; }
  // The keys that a row sees with a causal mask begin here, which rises with the position, and end here.
  int64_t begin_of(int64_t row) const {
    const int64_t p = batch.positions[row];
    const int64_t window = args.window > 0 ? p - args.window + 1 : 0, chunk = args.chunk > 0 ? p / args.chunk * args.chunk : 0;
    return std::max({int64_t{0}, window, chunk});
  }
  int64_t end_of(int64_t row) const { return batch.positions[row] + 1; }
  int64_t first_span(const AttentionTile& tile) const { return begin_of(tile.first) / kSpan; }
  int64_t num_spans(const AttentionTile& tile) const {
    return ceil_div(end_of(tile.first + tile.rows - 1), kSpan) - first_span(tile);
  }
};

}  // namespace lynx_rt
