// A mixer is the part of a decoder layer in which rows of one sequence see each other: attention of some kind, or what takes its
// place. Each kind has a file here, with its weights and mix(weights, step), which adds the mixer's output to the residual stream.
#pragma once
#include "backend/backend.h"
#include "model/model_config.h"
#include "model/workspace.h"

namespace lynx_rt {

// What mix() works with in one layer of a step. Its input are the normed rows Workspace::normed [T, H]; its output is added to
// Workspace::x [T, H].
struct MixerStep {
  Backend& backend;
  const ModelConfig& config;
  const LayerConfig& layer;
  Workspace& workspace;
  const RopeTable& rope;  // of config.rope.dim columns
  const BatchView& batch;
  const KvCacheView& cache;  // the layer's pages
};

// workspace.x += residual_multiplier * (o_proj(attended) + o_bias): the end of every kind of attention.
inline void add_attended(const MixerStep& s, const Activations& attended, const WeightView& o_proj, const WeightView& o_bias) {
  const LinearPart out{o_proj, o_bias, 0};
  s.backend.linear(attended, {&out, 1}, true, s.workspace.x.get(), s.config.hidden_size, s.config.residual_multiplier);
}

}  // namespace lynx_rt
