// What a model is, in words and sizes for people: `lynx-rt inspect`.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "model/model_config.h"

namespace lynx_rt {

struct ModelDescription {
  ModelConfig config;
  bool tied = false;  // whether the head is the embedding
  int64_t num_tensors = 0, num_files = 0;
  // Bytes: of the files' tensors; of the weights; of one expert (mean); of the weights that one token reads; of a token's K and V;
  // of the weights that cannot be used where they lie in the file.
  int64_t checkpoint_bytes = 0, weight_bytes = 0, expert_bytes = 0, active_bytes_per_token = 0, kv_bytes_per_token = 0,
          copied_weight_bytes = 0;
  std::vector<std::string> warnings, not_used;   // as ModelWeights has them
  std::vector<std::string> keys_not_understood;  // of config.json, those that matter
};

// Reads config.json and the headers of the tensors' files, no weights. Throws what opening and loading the model would.
ModelDescription describe_model(const std::string& path);

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
