// Records of an engine's routing.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "lynx_rt/engine.h"
#include "routing/routing.h"

namespace lynx_rt {

// The experts of every computed token, by KV slot: they are known as long as a page holds the token, so also when the prefix
// cache returns it. A page takes memory when it is first written.
class RoutedExpertsTable {
 public:
  RoutedExpertsTable(int64_t num_blocks, int64_t block_size, int64_t num_layers, int64_t top_k)
      : block_size_(block_size), num_layers_(num_layers), top_k_(top_k), pages_(size_t(num_blocks)) {}

  // Stores ids [slots.size(), L, k], each -1 or below 2^15, for the tokens of those KV slots.
  void store(const std::vector<int32_t>& ids, std::span<const int64_t> slots);
  // Returns the experts of tokens [begin, end) of a sequence whose pages are `blocks`.
  RoutedExperts gather(std::span<const int32_t> blocks, int64_t begin, int64_t end) const;

 private:
  int64_t block_size_, num_layers_, top_k_;
  std::vector<std::vector<int16_t>> pages_;  // [block_size, L, k] each, or empty
};

// Adds one step of one layer to the sums.
inline void add_step(EngineStats::Layer& sums, const SelectionStats& step) {
  ++sums.steps;
  sums.rows += step.rows;
  sums.union_before += step.union_before;
  sums.active += step.active;
  sums.remapped_pairs += step.remapped_pairs;
  sums.guard_hits += step.guard_hit;
  sums.retained_mass += step.retained_mass;
  sums.changed_rows += step.changed_rows;
  sums.misses_before += step.misses_before;
  sums.misses += step.misses;
}

}  // namespace lynx_rt
