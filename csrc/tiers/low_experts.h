// Copies of a model's experts in low precision.
#pragma once
#include <cstdint>
#include <vector>

#include "base/expert_weights.h"
#include "base/memory.h"

namespace lynx_rt {

// Copies of all experts, which stay in memory. Maker: make_low_experts() of model/low_experts.h.
struct LowExperts {
  explicit LowExperts(int64_t size) : bytes(size), memory(static_cast<uint8_t*>(allocate_pages(size, "expert_memory"))) {}
  ~LowExperts() { release_pages(memory, bytes); }
  LowExperts(const LowExperts&) = delete;

  int64_t bytes;
  uint8_t* memory;
  std::vector<std::vector<ExpertWeights>> experts;  // [layers with experts][E], in `memory`
};

}  // namespace lynx_rt
