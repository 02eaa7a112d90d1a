// The weights of a model, as the decoder takes them.
#pragma once
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "backend/backend.h"
#include "checkpoint/weights.h"
#include "model/mixers/gated_delta.h"
#include "model/mixers/gqa.h"
#include "model/mixers/kda.h"
#include "model/mixers/mamba2.h"
#include "model/mixers/mla.h"
#include "model/mixers/short_conv.h"
#include "model/vision/vision_weights.h"

namespace lynx_rt {

// By LayerConfig::mixer; monostate: none.
using MixerWeights =
    std::variant<std::monostate, GqaWeights, MlaWeights, GatedDeltaWeights, KdaWeights, Mamba2Weights, ShortConvWeights>;

// Weights of a layer with sandwich norms (Gemma 4); those from mlp_out on are of MoE layers alone. A layer with output norms has the
// first two.
struct SandwichWeights {
  WeightView attention_out;          // [H] of what attention adds
  WeightView block_out;              // [H] of what the MLP and the experts add together
  WeightView layer_scalar;           // [1] factor of the layer's output
  WeightView mlp_out, experts_out;   // [H] of what each of them adds
  WeightView experts_in, router_in;  // [H] of the rows that enter them
  WeightView expert_scale;           // [E] float32: FfnRule::expert_scale
};

// Weights of one decoder layer; those that a model lacks are empty. H hidden size, E experts.
struct LayerWeights {
  WeightView input_norm, input_norm_bias;  // [H] of the rows that enter the mixer
  MixerWeights mixer;
  WeightView post_attention_norm, post_attention_norm_bias;  // [H] of the rows that enter the experts or the MLP
  SandwichWeights sandwich;                                  // where ModelConfig::sandwich_norms or output_norms
  WeightView router, router_bias;                            // [E, H], [E]
  WeightView choice_bias;                                    // [E] float32: RouterRule::bias
  std::vector<ExpertWeights> experts;                        // E
  ExpertWeights shared_expert;                               // width ModelConfig::shared_expert_width
  WeightView shared_expert_gate;                             // [1, H]
  ExpertWeights mlp;                                         // the dense MLP
};

// A weight that is placed by itself.
struct WeightSlot {
  WeightView* view;
  WeightUse use;
};
// Weights that are placed together: a single one, the experts of a layer (or one MLP), or one kind of matrix for all heads.
using Placing = std::variant<WeightSlot, std::span<ExpertWeights>, std::span<WeightView>>;

// Calls visit(view, use) for each weight that is placed together with others.
template <class Visit>
void visit_weights(std::span<ExpertWeights> mlps, Visit visit) {
  for (ExpertWeights& e : mlps) {
    for (WeightView* v : {&e.gate, &e.up, &e.down}) visit(*v, WeightUse::kExpert);
    for (WeightView* v : {&e.gate_bias, &e.up_bias, &e.down_bias}) visit(*v, WeightUse::kVector);
  }
}
template <class Visit>
void visit_weights(const Placing& placing, Visit visit) {
  if (const auto* slot = std::get_if<WeightSlot>(&placing)) {
    visit(*slot->view, slot->use);
  } else if (const auto* mlps = std::get_if<std::span<ExpertWeights>>(&placing)) {
    visit_weights(*mlps, visit);
  } else {
    for (WeightView& head : std::get<std::span<WeightView>>(placing)) visit(head, WeightUse::kVector);  // heads are not quantised
  }
}

// All weights of a model. It is neither copied nor moved, because `placing` points into it.
struct ModelWeights {
  ModelWeights() = default;
  ModelWeights(const ModelWeights&) = delete;

  WeightView embed;                        // [V, H]
  WeightView final_norm, final_norm_bias;  // [H]
  WeightView lm_head, lm_head_bias;        // [V, H], the embedding where they are tied; [V]
  std::vector<LayerWeights> layers;
  std::optional<VisionWeights> vision;  // absent: the model reads text alone
  std::vector<Placing> placing;         // all of the above, as the specs say
  WeightCopies copies;                  // values of the checkpoint that cannot be used where they lie in the file
  OwnedWeights owned;                   // values that load_dummy_weights() made up
  std::vector<std::string> warnings;    // where the checkpoint contradicts its config
  std::vector<std::string> not_used;    // what the checkpoint holds beside the weights
};

}  // namespace lynx_rt
