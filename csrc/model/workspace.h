// All activations of a model, allocated once for its largest step.
#pragma once
#include <cstdint>

#include "backend/device_array.h"
#include "model/model_config.h"

namespace lynx_rt {

// What a step keeps of every MoE layer; without it, only the last layer's is kept.
struct StepRecording {
  bool routed_experts = false;
  bool router_logits = false;
};

// Sizes are in elements. T = max_rows. M = the number of MoE layers where they are recorded, else 1; a recorded layer's part
// begins at row layer * the rows of the step. MLA: L = kv_lora_rank, R = rope.dim.
struct Workspace {
  Workspace(Backend& backend, const ModelConfig& config, int64_t max_rows, int64_t max_logit_rows, StepRecording recording);
  int64_t bytes() const;

  DeviceArray<float> x;       // [T, H] residual stream
  Activations normed;         // [T, H]; MLA: [T, q_lora_rank] too
  DeviceArray<float> qkv;     // [T, projections of the widest mixer]; GQA: [T, (A + 2 G) * D]; MLA: q [T, A * D]
  Activations attended;       // [T, what the widest mixer gives]; GQA: [T, A * Dv]; MLA: [T, A * L]
  DeviceArray<float> branch;  // [T, H] what attention, the MLP or the experts add, before its norm (sandwich and output norms)
  DeviceArray<float> both_branches;     // [T, H] what the MLP and the experts add (sandwich norms)
  DeviceArray<float> q_a, kv_a;         // MLA: [T, q_lora_rank], [T, L + R]; q_a of KDA: [T, D]
  DeviceArray<float> latent_q;          // MLA: [T, A * (L + R)]
  DeviceArray<float> head_values;       // MLA: [T, A * Dv]
  DeviceArray<float> scores;            // [M, T, E] router logits
  DeviceArray<int32_t> ids;             // [M, T, k]
  DeviceArray<float> weights;           // [T, k]
  DeviceArray<int32_t> active;          // [E]
  DeviceArray<int32_t> offsets;         // [E + 1]
  DeviceArray<int32_t> sorted_of_pair;  // [T * k]
  DeviceArray<int32_t> pair_of_sorted;  // [T * k]
  DeviceArray<float> logit_rows;        // [max_logit_rows, H]
};

}  // namespace lynx_rt
