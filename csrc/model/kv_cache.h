// Pages of K and V: what attention keeps of every sequence.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "model/model_config.h"
#include "model/sequence_memory.h"
#include "model/workspace.h"

namespace lynx_rt {

// The pages of all layers that keep any, in the backend's memory.
class KvCache {
 public:
  // num_blocks: pages of each group.
  KvCache(Backend& backend, const ModelConfig& config, const PageGroups& groups, std::span<const int64_t> num_blocks,
          int64_t block_size);
  // Makes a cache in which all layers are in one group.
  KvCache(Backend& backend, const ModelConfig& config, int64_t num_blocks, int64_t block_size);
  // Returns the layer's pages; empty for a layer without pages.
  const KvCacheView& layer(int64_t l) const { return views_[size_t(l)]; }
  int32_t group(int64_t l) const { return groups_.of_layer[size_t(l)]; }  // of the layer: whose page table it uses
  int64_t num_groups() const { return int64_t(groups_.groups.size()); }
  int64_t bytes() const;
  // Returns the address of the first pages, which identifies this cache among others.
  const void* data() const { return memory_.empty() ? nullptr : memory_[0].get(); }
  // Returns the bytes that block_size tokens take in all layers together.
  static int64_t bytes_per_block(const ModelConfig& config, DType dtype, int64_t block_size);

 private:
  PageGroups groups_;
  std::vector<DeviceArray<char>> memory_;  // K, V of the first layer with pages, K, V of the next, ...
  std::vector<KvCacheView> views_;
};

}  // namespace lynx_rt
