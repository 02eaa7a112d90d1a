// The current expert selection: one for all steps, or the level that a governor chooses for each step.
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
  // options.max_num_seqs bounds the rows of decode-only steps, options.max_num_batched_tokens those of other steps. knows_cost: steps say
  // which experts are in memory; else all are.
  SelectionControl(Backend& backend, const ModelConfig& config, const EngineOptions& options, const std::string& text,
                   bool knows_cost);

  // Changes the selection from the next step on. Throws as SelectionTables::resolve(), and where steps may have more rows than
  // the backend can select experts for; then nothing has changed.
  void set(const std::string& text);
  const std::string& text() const { return text_; }

  const LayerSelections& current() const { return levels_[governor_ ? size_t(governor_->level()) : 0]; }
  // Sets batch.replayed where a layer replays.
  void prepare(BatchView& batch);
  // Call after a decode-only step that read `bytes` bytes of memory, `expert_bytes` of them for experts, and waited `wait_seconds` of its
  // time for experts from the disk.
  void observe(double seconds, double wait_seconds, const std::vector<SelectionStats>& layers, int64_t bytes,
               int64_t expert_bytes);

  void report(EngineStats& stats) const;
  void reset_report() {
    if (governor_) governor_->reset_report();
  }

 private:
  LayerSelections resolve(const std::string& text);

  Backend& backend_;
  const ModelConfig& config_;
  const EngineOptions& options_;
  const bool knows_cost_;
  SelectionTables tables_;
  std::string text_;
  std::vector<LayerSelections> levels_;
  std::optional<Governor> governor_;
};

}  // namespace lynx_rt
