// Weights without a checkpoint, for measuring speed: a model of any config, with made-up values.
#pragma once
#include <functional>
#include <optional>

#include "checkpoint/weights.h"

namespace lynx_rt {

// Fills every target of the specs: vectors with 1, rates of decay (WeightPiece::negative_exp) with -1, matrices with values of standard
// deviation 0.02 (the usual initializer_range). The values depend on nothing but their place. `shared`: all tensors lie in one block of the size of the largest, each at a
// start of its own, which suffices for callers that copy them; else each has memory of its own, with the same values. Targets for which
// `form` returns one become blocks of it, with random codes: all of them in one block of memory. Returns the memory.
using DummyForm = std::function<std::optional<BlockRows>(const TensorSpec& spec, const WeightView& target)>;
OwnedWeights dummy_weights(const std::vector<TensorSpec>& specs, DType dtype, bool shared, const DummyForm& form = {});

// Returns the form of a weight with `cols` columns that a file has in `format`, or would be repacked to, without data; nullopt where it
// would be decoded. dtype: the model's, which scales have where the format does not say.
std::optional<BlockRows> dummy_form(const QuantizedFormat& format, int64_t cols, DType dtype);

}  // namespace lynx_rt
