#include "tiers/virtual_cache.h"

#include <cmath>

#include "base/error.h"

namespace lynx_rt {

namespace {

ResidencyRule rule_of(const std::string& policy) {
  const ResidencyRule rule = parse_residency(policy);
  if (!rule.file.empty()) invalid("virtual_residency", "expected a policy without a file, got \"", policy, "\"");
  return rule;
}

std::vector<int64_t> quota_of(double residents, int64_t num_layers, int64_t num_experts) {
  const bool whole = residents >= 1 && residents <= double(num_experts) && residents == std::floor(residents);
  if (!(residents > 0 && residents < 1) && !whole)
    invalid("virtual_residents", "expected a share of the experts above 0 and below 1, or a number of them from 1 to ",
            num_experts, ", got ", shortest(residents));
  return std::vector<int64_t>(size_t(num_layers), int64_t(residents < 1 ? residents * double(num_experts) : residents));
}

}  // namespace

VirtualCache::VirtualCache(const std::string& policy, double residents, int64_t num_layers, int64_t num_experts)
    : residency_(rule_of(policy), quota_of(residents, num_layers, num_experts), num_experts), noted_(size_t(num_layers)) {}

void VirtualCache::note(int64_t layer, std::span<const int32_t> used, std::span<const int32_t> wanted) {
  Noted& noted = noted_[size_t(layer)];
  noted.used.assign(used.begin(), used.end());
  noted.wanted.assign(wanted.begin(), wanted.end());
}

void VirtualCache::end_step() {
  for (size_t l = 0; l < noted_.size(); ++l) residency_.update(int64_t(l), noted_[l].used, noted_[l].wanted);
}

}  // namespace lynx_rt
