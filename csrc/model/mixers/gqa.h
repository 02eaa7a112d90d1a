// Grouped-query attention (arXiv 2305.13245); multi-head and multi-query attention are its cases G = A and G = 1.
#pragma once
#include "model/mixers/mixer.h"

namespace lynx_rt {

// H hidden size, A/G query/kv heads, D head size; what a model lacks is empty.
struct GqaWeights {
  WeightView q_proj, q_bias;  // [A * D, H], [A * D]; attention_gate: [A * 2 D, H], [A * 2 D], of each head q, then its gate
  WeightView k_proj, k_bias;  // [G * D, H], [G * D]
  WeightView v_proj, v_bias;  // [G * D, H], [G * D]; empty where LayerConfig::v_from_k
  WeightView o_proj, o_bias;  // [H, A * D], [H]
  WeightView q_norm, k_norm;  // as ModelConfig::qk_norm says
  WeightView sinks;           // [A]
};

// Computes q, k and v in one product, applies their norms and rotary angles, writes k and v to the pages, attends through the
// pages, and adds the output projection.
void mix(const GqaWeights& w, const MixerStep& step);

}  // namespace lynx_rt
