// What a model is, in words for people: `lynx-rt inspect`.
#pragma once
#include <string>
#include <vector>

#include "model/model_config.h"

namespace lynx_rt {

// "sigmoid + bias, 8 of 256 experts in the best 4 of 8 groups, normalised, times 2.5, 1 shared expert of width 2048"; "" where
// there are no experts.
std::string describe_router(const ModelConfig& config);
// "64 query heads and 8 key/value heads of 64, biases, sinks, window 128 in 12 of 24 layers"
std::string describe_attention(const ModelConfig& config);
// "yarn, factor 32, theta 150000, 64 of 64 columns"
std::string describe_rope(const ModelConfig& config);
// Without the keys that mean nothing to inference: of training, of other software, of tokens that the tokenizer knows better.
std::vector<std::string> keys_that_matter(std::vector<std::string> keys);

}  // namespace lynx_rt
