// Tests ExpertSlots by random walks against Residency, with moves that take random times.
#include "tiers/expert_slots.h"

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "check.h"

using namespace lynx_rt;

namespace {

std::vector<int32_t> draw(std::mt19937& random, int32_t num_experts, unsigned most) {
  std::vector<int32_t> experts;
  for (unsigned i = 0; i < 1 + random() % most; ++i)
    experts.push_back(int32_t(random() % 4 ? random() % unsigned(num_experts) : 1));
  std::sort(experts.begin(), experts.end());
  experts.erase(std::unique(experts.begin(), experts.end()), experts.end());
  return experts;
}

// Residents and counts are those of Residency, however long moves take; in the end every resident lies in a slot.
void test_walk(const std::string& policy, int64_t num_slots, uint32_t seed) {
  constexpr int64_t kLayers = 3;
  constexpr int32_t kExperts = 12;
  const ResidencyRule rule = parse_residency(policy);
  const ExpertHistory lists =
      rule.policy == ResidencyPolicy::kStatic ? ExpertHistory(kLayers, {{3, 1, 11, 5, 0, 2, 4}}) : ExpertHistory{};
  ExpertSlots slots(rule, num_slots, kLayers, kExperts, lists);
  Residency want(rule, uniform_quota(num_slots, kLayers, kExperts), kExperts, lists);
  std::mt19937 random(seed);
  std::vector<std::vector<int32_t>> lies(size_t(kLayers), std::vector<int32_t>(kExperts, -1));  // what a table would say
  int64_t hits = 0, misses = 0, moved = 0;
  for (int step = 0; step < 3000; ++step) {
    for (int64_t l = 0; l < kLayers; ++l) {
      const auto used = draw(random, kExperts, 6), wanted = draw(random, kExperts, 4);
      const bool learn = random() % 8 != 0;
      for (const int32_t e : used) learn ? ++(want.cost(l)[size_t(e)] == 0 ? hits : misses) : 0;
      if (learn) want.update(l, used, wanted);
      slots.note(l, used, wanted, learn);
    }
    const bool was_moving = slots.moving(), arrived = random() % 3 == 0;
    const auto moves = slots.end_step(arrived);
    if (was_moving && !arrived) CHECK(moves.empty());
    moved += int64_t(moves.size());
    slots.check_integrity();
    for (int64_t l = 0; l < kLayers; ++l) {
      CHECK(std::equal(want.cost(l).begin(), want.cost(l).end(), slots.cost(l).begin()));
      for (int32_t e = 0; e < kExperts; ++e) {
        if (slots.changed(l)) lies[size_t(l)][size_t(e)] = slots.slot(l, e);
        CHECK_EQ(lies[size_t(l)][size_t(e)], slots.slot(l, e));
      }
    }
    for (const ExpertSlots::Move& m : moves)
      CHECK(slots.cost(m.layer)[size_t(m.expert)] == 0 && slots.slot(m.layer, m.expert) < 0);
  }
  slots.end_step(true);
  slots.end_step(true);
  for (int64_t l = 0; l < kLayers; ++l)
    for (int32_t e = 0; e < kExperts; ++e) CHECK_EQ(slots.slot(l, e) >= 0, slots.cost(l)[size_t(e)] == 0);
  CHECK_EQ(slots.counts().decode_hits, hits);
  CHECK_EQ(slots.counts().decode_misses, misses);
  CHECK(slots.counts().hits >= hits && slots.counts().misses >= misses);
  CHECK(slots.counts().moved >= moved);
  CHECK(slots.num_resident() <= num_slots);
  CHECK(slots.counts().late <= slots.counts().hits);
}

void test_refused() {
  for (const char* policy : {"lfu:miss=low", "hi_lo", "score", "belady", "ring"})
    CHECK_THROWS(ExpertSlots(parse_residency(policy), 4, 2, 4), ErrorCode::kUnsupported, "expert_policy", {"expected lfu"});
}

}  // namespace

int main() {
  uint32_t seed = 1;
  for (const char* policy : {"lfu", "lfu:decay=0.5", "lru", "lfru", "random", "static", "none"})
    for (const int64_t num_slots : {0, 2, 7, 18, 36}) test_walk(policy, num_slots, seed++);
  test_refused();
  return check::result("test_expert_slots");
}
