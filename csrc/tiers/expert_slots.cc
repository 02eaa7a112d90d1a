#include "tiers/expert_slots.h"

#include <algorithm>

#include "base/error.h"

namespace lynx_rt {

namespace {

const ResidencyRule& checked(const ResidencyRule& rule) {
  const auto refuse = [](const char* what) {
    fail(ErrorCode::kUnsupported, "expert_policy",
         "expert_policy: expected lfu, lru, lfru, random, static or none on this device; ", what);
  };
  if (rule.low) refuse("copies in low precision (miss=low, hi_lo) are for the CPU");
  if (rule.policy == ResidencyPolicy::kScore) refuse("score needs the gate mass of experts, which stays on the device");
  if (rule.policy == ResidencyPolicy::kBelady || rule.policy == ResidencyPolicy::kRing)
    refuse("belady and ring are for simulations");
  return rule;
}

}  // namespace

ExpertSlots::ExpertSlots(const ResidencyRule& rule, int64_t num_slots, int64_t num_layers, int64_t num_experts,
                         ExpertHistory lists)
    : residency_(checked(rule), uniform_quota(num_slots, num_layers, num_experts), num_experts, std::move(lists)),
      num_slots_(num_slots),
      slot_(size_t(num_layers), std::vector<int32_t>(size_t(num_experts), -1)),
      changed_(size_t(num_layers), 1),
      noted_(size_t(num_layers), 1) {
  for (int32_t s = int32_t(num_slots); s > 0; --s) free_.push_back(s - 1);
}

void ExpertSlots::note(int64_t layer, std::span<const int32_t> used, std::span<const int32_t> wanted, bool learn) {
  const auto cost = residency_.cost(layer);
  int64_t hits = 0;
  for (const int32_t e : used) {
    hits += cost[size_t(e)] == 0;
    counts_.late += cost[size_t(e)] == 0 && slot(layer, e) < 0;
  }
  const int64_t misses = int64_t(used.size()) - hits;
  counts_.hits += hits;
  counts_.misses += misses;
  if (!learn) return;
  counts_.decode_hits += hits;
  counts_.decode_misses += misses;
  const int64_t before = residency_.counts(layer).inserted + residency_.counts(layer).evicted;
  residency_.update(layer, used, wanted);
  if (residency_.counts(layer).inserted + residency_.counts(layer).evicted != before) noted_[size_t(layer)] = 1;
}

std::span<const ExpertSlots::Move> ExpertSlots::end_step(bool arrived) {
  changed_ = noted_;
  for (int64_t l = 0; l < num_layers(); ++l) {
    if (!noted_[size_t(l)]) continue;
    std::vector<int32_t>& slots = slot_[size_t(l)];
    const auto cost = residency_.cost(l);
    for (size_t e = 0; e < slots.size(); ++e) {
      if (slots[e] < 0 || cost[e] == 0) continue;
      free_.push_back(slots[e]);
      slots[e] = -1;
    }
  }
  if (moving() && !arrived) {
    for (uint8_t& noted : noted_) noted = 0;
    return {};
  }
  for (const Move& m : moves_) {
    if (residency_.cost(m.layer)[size_t(m.expert)] != 0) {
      free_.push_back(m.slot);
      continue;
    }
    slot_[size_t(m.layer)][size_t(m.expert)] = m.slot;
    changed_[size_t(m.layer)] = 1;
  }
  moves_.clear();
  for (int64_t l = 0; l < num_layers(); ++l) {
    const auto cost = residency_.cost(l);
    for (int32_t e = 0; e < int32_t(cost.size()) && !free_.empty(); ++e) {
      if (cost[size_t(e)] != 0 || slot(l, e) >= 0) continue;
      moves_.push_back({l, e, free_.back()});
      free_.pop_back();
    }
  }
  counts_.moved += int64_t(moves_.size());
  for (uint8_t& noted : noted_) noted = 0;
  return moves_;
}

int64_t ExpertSlots::num_resident() const {
  int64_t count = 0;
  for (int64_t l = 0; l < num_layers(); ++l) {
    const auto cost = residency_.cost(l);
    count += std::count(cost.begin(), cost.end(), 0);
  }
  return count;
}

void ExpertSlots::check_integrity() const {
  std::vector<uint8_t> owned(size_t(num_slots_), 0);
  const auto own = [&](int32_t s) {
    if (s < 0 || s >= num_slots_ || owned[size_t(s)]++)
      fail(ErrorCode::kInternal, "", "experts on the device: slot ", s, " has two owners");
  };
  for (const int32_t s : free_) own(s);
  for (const Move& m : moves_) own(m.slot);
  for (int64_t l = 0; l < num_layers(); ++l)
    for (int32_t e = 0; e < int32_t(slot_[size_t(l)].size()); ++e) {
      if (slot(l, e) < 0) continue;
      own(slot(l, e));
      if (cost(l)[size_t(e)] != 0)
        fail(ErrorCode::kInternal, "", "experts on the device: expert ", e, " of layer ", l,
             " lies in a slot and is not resident");
    }
  if (std::count(owned.begin(), owned.end(), 0)) fail(ErrorCode::kInternal, "", "experts on the device: a slot is lost");
}

}  // namespace lynx_rt
