#include "model/kv_cache.h"

namespace lynx_rt {

int64_t KvCache::bytes_per_block(const ModelConfig& m, DType dtype, int64_t block_size) {
  int64_t per_token = checked_mul(m.cache_columns(), dtype_size(dtype), "kv_cache");
  return checked_mul(checked_mul(per_token, m.num_layers, "kv_cache"), block_size, "kv_cache");
}

KvCache::KvCache(Backend& backend, const ModelConfig& m, int64_t num_blocks, int64_t block_size)
    : num_blocks_(num_blocks), block_size_(block_size) {
  const DType dtype = backend.compute_dtype();
  const int64_t values = checked_mul(num_blocks, block_size * m.cache_heads(), "kv_cache");
  const auto pages = [&](int64_t width) {
    memory_.emplace_back(backend, checked_mul(values, width * dtype_size(dtype), "kv_cache"), "kv_cache");
    return memory_.back().get();
  };
  for (int64_t l = 0; l < m.num_layers; ++l) {
    void* k = pages(m.cache_head_dim());
    void* v = m.mla() ? nullptr : pages(m.cache_v_dim());
    views_.push_back({k, v, dtype, num_blocks, block_size, m.cache_heads(), m.cache_head_dim(), m.cache_v_dim()});
  }
}

int64_t KvCache::bytes() const {
  int64_t sum = 0;
  for (const auto& a : memory_) sum += a.bytes();
  return sum;
}

}  // namespace lynx_rt
