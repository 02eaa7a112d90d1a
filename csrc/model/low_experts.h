// Copies of a model's experts in low precision, from which absent ones are computed: expert_policy with miss=low, and hi_lo.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "model/model_weights.h"
#include "tiers/low_experts.h"

namespace lynx_rt {

// The experts of a checkpoint, as load_weights() gives them: [layers][E], none in layers without experts.
using CheckpointExperts = std::vector<std::vector<ExpertWeights>>;

// Returns the bytes of low-precision copies of all experts, which are those of quantization="int4".
int64_t low_bytes(const CheckpointExperts& experts);

// Makes the copies, one expert after the other. `copies`: those of the weights, of which it reads what experts need and releases it again.
// Test: tests/tiers/test_low.py.
std::shared_ptr<const LowExperts> make_low_experts(const CheckpointExperts& experts, WeightCopies& copies, int num_threads);

}  // namespace lynx_rt
