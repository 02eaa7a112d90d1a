// A mixer is the part of a decoder layer in which rows of one sequence see each other: a kind of attention, or what replaces it.
// Each kind has a file here, with its weights and mix(weights, step), which computes the mixer's output.
#pragma once
#include "backend/backend.h"
#include "model/model_config.h"
#include "model/workspace.h"

namespace lynx_rt {

// The arguments of mix() in one layer of a step. mix() writes its output as `out` says.
struct MixerStep {
  Backend& backend;
  const ModelConfig& config;
  const LayerConfig& layer;
  Workspace& workspace;
  const Activations& input;  // [T, H] the rows that enter; may be Workspace::normed
  const RopeTable& rope;     // of the layer
  const BatchView& batch;
  const KvCacheView& cache;  // the layer's pages
  const StateView& states;   // the layer's states
  float* out;                // [T, H] where the output goes; it is added to the residual stream, or replaces what is there
  bool accumulate;
};

// out (+)= residual_multiplier * (o_proj(attended) + o_bias): the end of every kind of attention.
inline void add_attended(const MixerStep& s, const Activations& attended, const WeightView& o_proj, const WeightView& o_bias) {
  const LinearPart out{o_proj, o_bias, 0};
  s.backend.linear(attended, {&out, 1}, s.accumulate, s.out, s.config.hidden_size, s.config.residual_multiplier);
}

}  // namespace lynx_rt
