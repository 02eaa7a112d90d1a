// A mixer is the part of a decoder layer in which rows of one sequence see each other: a kind of attention, or what replaces it.
// Each kind has a file here, with its weights and mix(weights, step), which adds the mixer's output to the residual stream.
#pragma once
#include "backend/backend.h"
#include "model/model_config.h"
#include "model/workspace.h"

namespace lynx_rt {

// The arguments of mix() in one layer of a step. mix() reads the normed rows Workspace::normed [T, H] and adds its output to
// Workspace::x [T, H].
struct MixerStep {
  Backend& backend;
  const ModelConfig& config;
  const LayerConfig& layer;
  Workspace& workspace;
  const RopeTable& rope;  // for config.rope.dim columns
  const BatchView& batch;
  const KvCacheView& cache;  // the layer's pages
  const StateView& states;   // the layer's states
};

// workspace.x += residual_multiplier * (o_proj(attended) + o_bias): the end of every kind of attention.
inline void add_attended(const MixerStep& s, const Activations& attended, const WeightView& o_proj, const WeightView& o_bias) {
  const LinearPart out{o_proj, o_bias, 0};
  s.backend.linear(attended, {&out, 1}, true, s.workspace.x.get(), s.config.hidden_size, s.config.residual_multiplier);
}

}  // namespace lynx_rt
