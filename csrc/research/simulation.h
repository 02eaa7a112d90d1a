// Expert selection on recorded router logits, without the model.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "lynx_rt/engine.h"
#include "model/selection_tables.h"
#include "routing/rule.h"
#include "routing/selector.h"

namespace lynx_rt {

// Recorded rows of decode steps; the fields are those of RouterLogits.
struct RecordedRows {
  const float* scores;              // [N, L, E]
  const uint8_t* exact;             // [N]
  int64_t num_rows;                 // N
  int64_t num_model_layers;         // all layers of the model, dense ones too
  std::span<const int32_t> layers;  // [L] numbers of the MoE layers
  int64_t num_experts;              // E
  int64_t num_experts_per_tok;      // k
  bool norm_topk_prob;
  RouterRule router;         // kind and groups are used; the other members do not affect the choice, or are given here
  const float* choice_bias;  // [L, E], or null
};

// Routes decode steps made of recorded rows: step s has rows order[offsets[s]] .. order[offsets[s + 1] - 1]. Steps are taken in order, and
// the layers of a step too. What it is given has to outlive it.
class RecordedRouter {
 public:
  // Throws as simulate().
  RecordedRouter(const RecordedRows& rows, const std::string& selection, std::span<const int64_t> order,
                 std::span<const int64_t> offsets);
  RecordedRouter(const RecordedRouter&) = delete;

  int64_t num_steps() const { return int64_t(offsets_.size()) - 1; }
  int64_t num_layers() const { return int64_t(rows_.layers.size()); }
  int64_t num_experts() const { return rows_.num_experts; }
  // Whether the layer's selection has the key `resident`: its choice then depends on what experts cost.
  bool sees_cost(int64_t layer) const { return selections_.layers[size_t(layer)].resident > 0; }
  // Returns the rows of the next step.
  std::span<const int64_t> begin_step();
  // Chooses the experts of a layer of the step. cost: as Selector::run() takes it.
  SelectionStats route(int64_t layer, const uint8_t* cost = nullptr);
  // The experts of the last route(), those of the rows' own choice with their gate mass, and the ids [rows of the step, k].
  std::span<const int32_t> used() const { return {active_.data(), size_t(routing_.num_active)}; }
  std::span<const int32_t> wanted() const { return {wanted_.data(), size_t(routing_.num_wanted)}; }
  std::span<const float> wanted_mass() const { return {wanted_mass_.data(), size_t(routing_.num_wanted)}; }
  std::span<const int32_t> ids() const { return {ids_.data(), step_.size() * size_t(rows_.num_experts_per_tok)}; }

 private:
  const RecordedRows& rows_;
  std::span<const int64_t> order_, offsets_;
  ModelConfig config_;
  std::unique_ptr<Backend> backend_;  // keeps the tables
  SelectionTables tables_;
  LayerSelections selections_;
  RouterRule rule_;
  Selector selector_;
  int64_t next_step_ = 0;
  std::span<const int64_t> step_;
  const int32_t* replayed_ = nullptr;
  std::vector<float> scores_, weights_, wanted_mass_;
  std::vector<uint8_t> exact_;
  std::vector<int32_t> ids_, active_, wanted_;
  Routing routing_{};
};

// Runs `selection` (any text that an engine takes) on such steps. Returns the counts of an engine under that policy in such steps,
// bit for bit, and writes each row's final experts to `routed_experts` [order.size(), L, k], unless that is null. Throws as
// Engine::set_expert_selection(), and kInvalidArgument for a row or an offset out of range, or a score that is not finite.
std::vector<EngineStats::Layer> simulate(const RecordedRows& rows, const std::string& selection, std::span<const int64_t> order,
                                         std::span<const int64_t> offsets, int16_t* routed_experts);

}  // namespace lynx_rt
