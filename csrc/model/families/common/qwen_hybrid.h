// The part that Qwen3-Next and Qwen3.5 share: layers with gated DeltaNet between layers with gated attention.
#pragma once
#include <vector>

#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

// Reads everything but the MLPs: layer kinds, linear_*, attention, rope.
ModelConfig read_hybrid(const ConfigReader& config);
std::vector<TensorSpec> hybrid_specs(const ModelConfig& m, const Checkpoint& checkpoint, ModelWeights& weights);
// The tensors of the layer that predicts a further token, and of the vision tower.
const std::vector<std::string>& tensors_beside_text();

}  // namespace lynx_rt
