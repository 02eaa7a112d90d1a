// The weights of a model, as the decoder takes them.
#pragma once
#include <string>
#include <vector>

#include "backend/backend.h"
#include "checkpoint/weights.h"

namespace lynx_rt {

// Weights of one decoder layer; what a model lacks is empty. H hidden, A/G query/kv heads, D head size, E experts, I expert width.
struct LayerWeights {
  WeightView input_norm, input_norm_bias;  // [H]
  WeightView q_proj, q_bias;               // [A * D, H], [A * D]
  WeightView k_proj, k_bias;               // [G * D, H], [G * D]
  WeightView v_proj, v_bias;               // [G * D, H], [G * D]
  WeightView o_proj, o_bias;               // [H, A * Dv], [H]
  WeightView q_norm, k_norm;               // as ModelConfig::qk_norm says
  WeightView sinks;                        // [A]
  // MLA: L = kv_lora_rank, R = rope.dim, Q = q_lora_rank; without Q, q_proj is [A * D, H].
  WeightView q_a_proj, q_a_bias, q_a_norm, q_b_proj;         // [Q, H], [Q], [Q], [A * D, Q]
  WeightView kv_a_proj, kv_a_bias, kv_a_norm;                // [L + R, H], [L + R], [L]
  std::vector<WeightView> k_absorb;                          // A of [L, nope]: the K rows of kv_b_proj, transposed
  std::vector<WeightView> v_absorb;                          // A of [Dv, L]: its V rows
  WeightView post_attention_norm, post_attention_norm_bias;  // [H]
  WeightView router, router_bias;                            // [E, H], [E]
  WeightView choice_bias;                                    // [E] float32: RouterRule::bias
  std::vector<ExpertWeights> experts;                        // E
  ExpertWeights shared_expert;                               // of shared_expert_width
  WeightView shared_expert_gate;                             // [1, H]
  ExpertWeights mlp;                                         // the dense MLP
};

struct ModelWeights {
  WeightView embed;                        // [V, H]
  WeightView final_norm, final_norm_bias;  // [H]
  WeightView lm_head, lm_head_bias;        // [V, H], the embedding where they are tied; [V]
  std::vector<LayerWeights> layers;
  WeightCopies copies;                // values of the checkpoint that cannot be used where they lie in the file
  OwnedWeights owned;                 // values that load_dummy_weights() made up
  std::vector<std::string> warnings;  // where the checkpoint contradicts its config
  std::vector<std::string> not_used;  // what the checkpoint holds beside the weights, for people
};

}  // namespace lynx_rt
