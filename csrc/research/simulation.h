// Expert selection on recorded router logits, without the model.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "lynx_rt/engine.h"
#include "routing/rule.h"

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

// Runs `selection` (any text that an engine takes) on decode steps made of recorded rows: step s has rows order[offsets[s]] ..
// order[offsets[s + 1] - 1]. Returns the counts of an engine under that policy in such steps, bit for bit, and writes each row's
// final experts to `routed_experts` [order.size(), L, k], unless that is null. Throws as Engine::set_expert_selection(), and
// kInvalidArgument for a row or an offset out of range, or a score that is not finite.
std::vector<EngineStats::Layer> simulate(const RecordedRows& rows, const std::string& selection, std::span<const int64_t> order,
                                         std::span<const int64_t> offsets, int16_t* routed_experts);

}  // namespace lynx_rt
