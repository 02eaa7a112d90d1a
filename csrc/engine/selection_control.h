// The expert selection in force: one for all steps, or the level that a governor chooses for each.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "engine/governor.h"
#include "lynx_rt/engine.h"
#include "model/selection_tables.h"

namespace lynx_rt {

class SelectionControl {
 public:
  // options.max_num_seqs and max_num_batched_tokens bound the rows of decode-only and of other steps.
  SelectionControl(Backend& backend, const ModelConfig& config, const EngineOptions& options, const std::string& text);

  // Changes the selection from the next step on. Throws as SelectionTables::resolve(), and for more rows than the backend selects
  // experts over; nothing has changed then.
  void set(const std::string& text);
  const std::string& text() const { return text_; }

  const LayerSelections& current() const { return levels_[governor_ ? size_t(governor_->level()) : 0]; }
  // Fills batch.replayed, where a layer replays.
  void prepare(BatchView& batch);
  // Called after a decode-only step, which read `bytes`, `expert_bytes` of them for experts.
  void observe(double seconds, const std::vector<SelectionStats>& layers, int64_t bytes, int64_t expert_bytes);

  void report(EngineStats& stats) const;
  void reset_report() {
    if (governor_) governor_->reset_report();
  }

 private:
  LayerSelections resolve(const std::string& text);

  Backend& backend_;
  const ModelConfig& config_;
  const EngineOptions& options_;
  SelectionTables tables_;
  std::string text_;
  std::vector<LayerSelections> levels_;
  std::optional<Governor> governor_;
};

}  // namespace lynx_rt
