#include "research/tier_simulation.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "model/expert_lists.h"
#include "research/plec.h"
#include "tiers/guesses.h"

namespace lynx_rt {

namespace {

// Returns the experts by which uses are dated in each layer and step: used ones, or own choices where what is used depends on residents.
ExpertHistory look_ahead(RecordedRouter& router) {
  ExpertHistory history(size_t(router.num_layers()));
  for (int64_t s = 0; s < router.num_steps(); ++s) {
    router.begin_step();
    for (int64_t l = 0; l < router.num_layers(); ++l) {
      router.route(l);
      const auto experts = router.sees_cost(l) ? router.wanted() : router.used();
      history[size_t(l)].emplace_back(experts.begin(), experts.end());
    }
  }
  return history;
}

class Run {
 public:
  Run(RecordedRouter& router, const TierSetup& setup, ExpertHistory lists)
      : router_(router),
        setup_(setup),
        residency_(setup.rule, quota_of(setup.residents, router.num_layers(), router.num_experts(), "residents"),
                   router.num_experts(), std::move(lists)),
        clock_(setup.times),
        guesses_(router.num_experts()),
        guessed_(size_t(router.num_layers())),
        all_(size_t(router.num_experts())),
        is_ring_(setup.rule.policy == ResidencyPolicy::kRing),
        out_(router.num_steps(), router.num_layers()) {
    std::iota(all_.begin(), all_.end(), 0);
  }

  TierSimulation run() && {
    for (step_ = 0; step_ < router_.num_steps(); ++step_) {
      const double start = clock_.now();
      step_rows_ = router_.begin_step();
      clock_.begin_step();
      if (setup_.seeds)
        for (const int64_t row : step_rows_) seed(row);
      for (int64_t l = 0; l < std::min(setup_.distance, router_.num_layers()); ++l) hint(l);
      for (int64_t l = 0; l < router_.num_layers(); ++l) layer(l);
      out_.seconds[size_t(step_)] = clock_.now() - start;
    }
    return std::move(out_);
  }

 private:
  size_t cell(int64_t layer) const { return size_t(step_ * router_.num_layers() + layer); }

  void seed(int64_t row) {
    const int64_t width = router_.num_experts();
    for (int64_t l = 0; l < router_.num_layers(); ++l) {
      const std::span<const float> uses(setup_.seeds + (row * router_.num_layers() + l) * width, size_t(width));
      if (std::any_of(uses.begin(), uses.end(), [](float count) { return count != 0; })) residency_.seed(l, uses);
    }
  }

  void layer(int64_t l) {
    const auto cost = residency_.cost(l);
    out_.retained_mass[size_t(step_)] += router_.route(l, cost.data()).retained_mass;
    const auto used = router_.used();
    misses_.clear();
    for (const int32_t e : used)
      if (cost[size_t(e)] != 0) misses_.push_back(e);
    const std::vector<int32_t>& reads = is_ring_ ? all_ : misses_;
    const auto result = clock_.run(l, int64_t(used.size() - misses_.size()), reads, used);
    out_.used[cell(l)] = int32_t(used.size());
    out_.misses[cell(l)] = int32_t(misses_.size());
    out_.reads[cell(l)] = int32_t(reads.size());
    out_.needed[cell(l)] = result.needed;
    out_.in_time[cell(l)] = result.in_time;
    out_.wait[size_t(step_)] += result.wait;
    out_.wasted[size_t(step_)] += result.wasted;
    out_.disk[size_t(step_)] += double(misses_.size()) * setup_.times.read + result.wasted;
    for (const int32_t e : guessed_[size_t(l)]) out_.guessed_used[cell(l)] += std::binary_search(used.begin(), used.end(), e);
    const bool by_used = setup_.rule.policy == ResidencyPolicy::kBelady && !router_.sees_cost(l);
    residency_.update(l, used, by_used ? used : router_.wanted(), by_used ? std::span<const float>() : router_.wanted_mass());
    if (is_ring_) {
      for (const int32_t e : all_) clock_.hint((l + 1) % router_.num_layers(), e);
    } else if (l + setup_.distance < router_.num_layers()) {
      hint(l + setup_.distance);
    }
  }

  void hint(int64_t l) {
    std::vector<int32_t>& guessed = guessed_[size_t(l)];
    guessed.clear();
    if (!setup_.guesses) return;
    guesses_.begin();
    for (const int64_t row : step_rows_)
      guesses_.add_row(setup_.guesses + (row * router_.num_layers() + l) * router_.num_experts(), setup_.num_guesses);
    guessed = guesses_.end();
    out_.guessed[cell(l)] = int32_t(guessed.size());
    for (const int32_t e : guessed)
      if (residency_.cost(l)[size_t(e)] != 0) {
        clock_.hint(l, e);
        ++out_.ahead[cell(l)];
      }
  }

  RecordedRouter& router_;
  const TierSetup& setup_;
  Residency residency_;
  TierClock clock_;
  Guesses guesses_;
  std::vector<std::vector<int32_t>> guessed_;  // [L] of this step
  std::vector<int32_t> all_, misses_;
  bool is_ring_;
  int64_t step_ = 0;
  std::span<const int64_t> step_rows_;
  TierSimulation out_;
};

}  // namespace

TierSimulation::TierSimulation(int64_t num_steps, int64_t num_layers) {
  for (auto* counts : {&used, &misses, &reads, &guessed, &guessed_used, &ahead, &needed, &in_time})
    counts->assign(size_t(num_steps * num_layers), 0);
  for (auto* sums : {&seconds, &wait, &wasted, &disk, &retained_mass}) sums->assign(size_t(num_steps), 0);
}

TierSimulation simulate_tier(const RecordedRows& rows, const std::string& selection, std::span<const int64_t> order,
                             std::span<const int64_t> offsets, const TierSetup& setup) {
  if (setup.guesses && (setup.num_guesses < 1 || setup.num_guesses > rows.num_experts))
    invalid("prefetch", "n: expected 1..", rows.num_experts, ", got ", setup.num_guesses);
  if (setup.rule.low)
    invalid("expert_policy",
            "expected a policy without copies in low precision (miss=low, hi_lo), whose reads in the background have no "
            "clock here");
  if (setup.distance < 1) invalid("prefetch", "d: expected at least 1, got ", setup.distance);
  RecordedRouter router(rows, selection, order, offsets);
  if (setup.plec) return simulate_plec(router, setup);
  ExpertHistory lists = setup.lists;
  if (setup.rule.policy == ResidencyPolicy::kStatic && lists.empty())
    lists = read_expert_lists(setup.rule.file, router.num_layers());
  if (setup.rule.policy == ResidencyPolicy::kBelady) {
    RecordedRouter ahead(rows, selection, order, offsets);
    lists = look_ahead(ahead);
  }
  return Run(router, setup, std::move(lists)).run();
}

}  // namespace lynx_rt
