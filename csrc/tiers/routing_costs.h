// The cost of choosing an expert, which selection may look at.
#pragma once
#include <cstdint>
#include <span>

namespace lynx_rt {

// A store of experts, or a cache that is only counted.
class RoutingCosts {
 public:
  virtual ~RoutingCosts() = default;
  // Returns a layer's costs, [E]: 0 = the expert is in memory, 1 = a read. `layer` counts the layers with experts.
  virtual std::span<const uint8_t> cost(int64_t layer) const = 0;
};

}  // namespace lynx_rt
