// Pages of K and V, the memory that attention keeps of every sequence.
#pragma once
#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "model/model_config.h"
#include "model/workspace.h"

namespace lynx_rt {

// Per-layer K and V pages in the backend's memory.
class KvCache {
 public:
  KvCache(Backend& backend, const ModelConfig& config, int64_t num_blocks, int64_t block_size);
  const KvCacheView& layer(int64_t l) const { return views_[size_t(l)]; }
  int64_t num_blocks() const { return num_blocks_; }
  int64_t block_size() const { return block_size_; }
  int64_t bytes() const;
  static int64_t bytes_per_block(const ModelConfig& config, DType dtype, int64_t block_size);

 private:
  int64_t num_blocks_, block_size_;
  std::vector<DeviceArray<char>> memory_;  // K, V of layer 0, K, V of layer 1, ...
  std::vector<KvCacheView> views_;
};

}  // namespace lynx_rt
