// A cache of experts without weights, for research: all experts stay in memory, and what is counted is what a cache of some of them would
// have read. Selection sees it as it would see a real one.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "tiers/residency.h"
#include "tiers/routing_costs.h"

namespace lynx_rt {

class VirtualCache : public RoutingCosts {
 public:
  // policy: as parse_residency() takes it. residents: below 1 the share of each layer's experts that is resident (rounded down), else a
  // number of experts per layer. Throws kInvalidArgument (fields virtual_residency, virtual_residents).
  VirtualCache(const std::string& policy, double residents, int64_t num_layers, int64_t num_experts);

  // Changes with end_step() alone.
  std::span<const uint8_t> cost(int64_t layer) const override { return residency_.cost(layer); }
  // Takes what a layer of the step used, and the experts of the model's own routing, both rising, with the gate mass of these. The last
  // call of a layer counts, so that a step that failed can be run again.
  void note(int64_t layer, std::span<const int32_t> used, std::span<const int32_t> wanted, std::span<const float> mass);
  void end_step();

 private:
  struct Noted {
    std::vector<int32_t> used, wanted;
    std::vector<float> mass;  // of wanted
  };
  Residency residency_;
  std::vector<Noted> noted_;  // [layers]
};

}  // namespace lynx_rt
