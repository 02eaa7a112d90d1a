#include "tiers/virtual_cache.h"

#include "base/error.h"

namespace lynx_rt {

namespace {

ResidencyRule rule_of(const std::string& policy) {
  const ResidencyRule rule = parse_residency(policy);
  if (rule.policy == ResidencyPolicy::kStatic || rule.policy == ResidencyPolicy::kBelady)
    invalid("virtual_residency", "expected a policy without lists, got \"", policy, "\"; lynx-rt simulate has static and belady");
  if (rule.low)
    invalid("virtual_residency",
            "expected a policy without copies in low precision, which a cache without weights has not, got \"", policy, "\"");
  return rule;
}

}  // namespace

VirtualCache::VirtualCache(const std::string& policy, double residents, int64_t num_layers, int64_t num_experts)
    : residency_(rule_of(policy), quota_of(residents, num_layers, num_experts, "virtual_residents"), num_experts),
      noted_(size_t(num_layers)) {}

void VirtualCache::note(int64_t layer, std::span<const int32_t> used, std::span<const int32_t> wanted,
                        std::span<const float> mass) {
  Noted& noted = noted_[size_t(layer)];
  noted.used.assign(used.begin(), used.end());
  noted.wanted.assign(wanted.begin(), wanted.end());
  noted.mass.assign(mass.begin(), mass.end());
}

void VirtualCache::end_step() {
  for (size_t l = 0; l < noted_.size(); ++l) residency_.update(int64_t(l), noted_[l].used, noted_[l].wanted, noted_[l].mass);
}

}  // namespace lynx_rt
