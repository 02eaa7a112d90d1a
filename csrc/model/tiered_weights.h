// Weights of a model whose experts come from a file of their own (tiers/expert_file.h).
#pragma once
#include <cstdint>
#include <functional>

#include "model/model_config.h"
#include "model/model_weights.h"
#include "tiers/expert_file.h"

namespace lynx_rt {

// Throws kInvalidArgument (field expert_file) where the file has other experts than the model: another checkpoint, quantisation, number or
// size.
void expect_experts_of(const ExpertFile& file, const ModelConfig& config, const ExpertSource& source);

// Takes the experts from the file instead of the checkpoint: they are no longer among the weights to place. `mapped`: where the file is
// mapped; null: the views of experts are without values.
void use_expert_file(const ExpertFile& file, const uint8_t* mapped, ModelWeights& weights);

// Copies the weights whose data lies in a mapped file to memory of the process, which the system does not take away when memory is short.
// Returns their bytes.
int64_t copy_to_memory(ModelWeights& weights, const std::function<bool(const void* data)>& is_mapped);

}  // namespace lynx_rt
