#include "engine/selection_control.h"

#include "base/error.h"

namespace lynx_rt {

SelectionControl::SelectionControl(Backend& backend, const ModelConfig& config, const EngineOptions& options,
                                   const std::string& text, bool knows_cost)
    : backend_(backend), config_(config), options_(options), knows_cost_(knows_cost), tables_(backend, config) {
  set(text);
}

LayerSelections SelectionControl::resolve(const std::string& text) {
  LayerSelections selections = tables_.resolve(text);
  const int64_t rows = backend_.max_selection_rows();
  for (Selection& layer : selections.layers) {
    if (!knows_cost_) layer.resident = 0;  // all experts are in memory
    if (layer.policy == Policy::kTopk && is_per_row(layer)) continue;
    if (options_.max_num_seqs > rows)
      invalid("max_num_seqs", "expected at most ", rows, ", the rows over which ", backend_.description(),
              " selects experts, got ", options_.max_num_seqs);
    if (layer.all_phases && options_.max_num_batched_tokens > rows)
      invalid("max_num_batched_tokens", "expected at most ", rows, ", the rows over which ", backend_.description(),
              " selects experts (phase=all), got ", options_.max_num_batched_tokens);
  }
  return selections;
}

void SelectionControl::set(const std::string& text) {
  std::vector<LayerSelections> levels;
  std::optional<Governor> governor;
  std::string canonical;
  tables_.begin();
  if (is_slo(text)) {
    const SloPlan plan = parse_slo(text, int(config_.num_experts_per_tok));
    for (const std::string& level : plan.levels) levels.push_back(resolve(level));
    governor.emplace(plan.target_seconds, int(levels.size()));
    canonical = plan.text;
  } else {
    levels.push_back(resolve(text));
    canonical = levels[0].text;
  }
  tables_.commit();
  levels_ = std::move(levels);
  governor_ = std::move(governor);
  text_ = std::move(canonical);
}

void SelectionControl::prepare(BatchView& batch) {
  batch.replayed = tables_.next_replayed(current(), batch.phase, batch.num_rows);
}

void SelectionControl::observe(double seconds, double wait_seconds, const std::vector<SelectionStats>& layers, int64_t bytes,
                               int64_t expert_bytes) {
  if (!governor_) return;
  Governor::Step step;
  step.seconds = seconds;
  step.wait_seconds = wait_seconds;
  for (const SelectionStats& s : layers) {
    step.union_before += s.union_before;
    step.active += s.active;
    step.misses_before += s.misses_before;
    step.misses += s.misses;
  }
  if (bytes > 0) step.expert_share = double(expert_bytes) / double(bytes);
  governor_->observe(step);
}

void SelectionControl::report(EngineStats& stats) const {
  if (!governor_) return;
  const Governor::Report r = governor_->report();
  stats.slo.target_seconds = r.target_seconds;
  stats.slo.fixed_seconds = r.fixed_seconds;
  stats.slo.seconds_per_expert = r.seconds_per_expert;
  stats.slo.seconds_per_miss = r.seconds_per_miss;
  stats.slo.steps_over_target = r.steps_over_target;
  stats.slo.level = r.level;
  for (size_t i = 0; i < levels_.size(); ++i) stats.slo.levels.push_back({levels_[i].text, r.steps_at_level[i]});
}

}  // namespace lynx_rt
