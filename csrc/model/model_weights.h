// The weights of a model, as the decoder takes them.
#pragma once
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "backend/backend.h"
#include "checkpoint/weights.h"
#include "model/mixers/gqa.h"
#include "model/mixers/mla.h"

namespace lynx_rt {

using MixerWeights = std::variant<GqaWeights, MlaWeights>;  // of LayerConfig::mixer

// Weights of one decoder layer; what a model lacks is empty. H hidden size, E experts.
struct LayerWeights {
  WeightView input_norm, input_norm_bias;  // [H]
  MixerWeights mixer;
  WeightView post_attention_norm, post_attention_norm_bias;  // [H]
  WeightView router, router_bias;                            // [E, H], [E]
  WeightView choice_bias;                                    // [E] float32: RouterRule::bias
  std::vector<ExpertWeights> experts;                        // E
  ExpertWeights shared_expert;                               // of shared_expert_width
  WeightView shared_expert_gate;                             // [1, H]
  ExpertWeights mlp;                                         // the dense MLP
};

// One weight, placed by itself.
struct WeightSlot {
  WeightView* view;
  WeightUse use;
};
// How a weight gets to the backend: by itself, with all experts of its layer (or as its MLP alone), or with all heads of its kind.
using Placing = std::variant<WeightSlot, std::span<ExpertWeights>, std::span<WeightView>>;

// Neither copied nor moved: `placing` points into it.
struct ModelWeights {
  ModelWeights() = default;
  ModelWeights(const ModelWeights&) = delete;

  WeightView embed;                        // [V, H]
  WeightView final_norm, final_norm_bias;  // [H]
  WeightView lm_head, lm_head_bias;        // [V, H], the embedding where they are tied; [V]
  std::vector<LayerWeights> layers;
  std::vector<Placing> placing;       // of all of the above, as their specifications say
  WeightCopies copies;                // values of the checkpoint that cannot be used where they lie in the file
  OwnedWeights owned;                 // values that load_dummy_weights() made up
  std::vector<std::string> warnings;  // where the checkpoint contradicts its config
  std::vector<std::string> not_used;  // what the checkpoint holds beside the weights, for people
};

}  // namespace lynx_rt
