#include "model/kv_cache.h"

#include <array>

namespace lynx_rt {

int64_t KvCache::bytes_per_block(const ModelConfig& m, DType dtype, int64_t block_size) {
  int64_t per_token = 0;
  for (int64_t l = 0; l < m.num_layers; ++l)
    if (const SequenceMemory memory = sequence_memory(m, l, dtype); memory.kind == SequenceMemory::kPages)
      per_token += memory.bytes;
  return checked_mul(per_token, block_size, "kv_cache");
}

KvCache::KvCache(Backend& backend, const ModelConfig& m, int64_t num_blocks, int64_t block_size)
    : KvCache(backend, m, {{PageGroup{}}, std::vector<int32_t>(size_t(m.num_layers), 0)}, std::array{num_blocks}, block_size) {}

KvCache::KvCache(Backend& backend, const ModelConfig& m, const PageGroups& groups, std::span<const int64_t> num_blocks,
                 int64_t block_size)
    : groups_(groups) {
  const DType dtype = backend.compute_dtype();
  const auto pages = [&](int64_t blocks, int64_t columns) {
    const int64_t tokens = checked_mul(blocks, block_size, "kv_cache");
    memory_.emplace_back(backend, checked_mul(tokens, columns * dtype_size(dtype), "kv_cache"), "kv_cache");
    return memory_.back().get();
  };
  for (int64_t l = 0; l < m.num_layers; ++l) {
    KvCacheView& view = views_.emplace_back();
    if (sequence_memory(m, l, dtype).kind != SequenceMemory::kPages) continue;
    const KvShape shape = kv_shape(m, m.layers[size_t(l)]);
    const int64_t blocks = num_blocks[size_t(group(l))];
    void* k = pages(blocks, shape.num_heads * shape.head_dim);
    void* v = shape.v_in_k ? nullptr : pages(blocks, shape.num_heads * shape.v_head_dim);
    view = {k, v, dtype, blocks, block_size, shape.num_heads, shape.head_dim, shape.v_head_dim};
  }
}

int64_t KvCache::bytes() const {
  int64_t sum = 0;
  for (const auto& a : memory_) sum += a.bytes();
  return sum;
}

}  // namespace lynx_rt
