// Weights without a checkpoint, for measuring speed: a model of any config, with made-up values.
#pragma once
#include "checkpoint/weights.h"

namespace lynx_rt {

// Fills every target of the specs: vectors with 1, matrices with values of standard deviation 0.02 (the usual initializer_range).
// The values depend on nothing but their place. `shared`: all tensors lie in one block of the size of the largest, each at a
// start of its own, which suffices for callers that copy them; else each has memory of its own, with the same values. Returns the
// memory.
OwnedWeights dummy_weights(const std::vector<TensorSpec>& specs, DType dtype, bool shared);

}  // namespace lynx_rt
