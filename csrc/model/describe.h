// Describes a model to people, in words and sizes: `lynx-rt inspect`.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "model/model_config.h"

namespace lynx_rt {

// What loading a model on the CPU with one value of `quantization` comes to.
struct WeightOption {
  std::string quantization;
  // The weights by where they lie, as ModelInfo of engine.h has them: in the mapped files, whose pages the system can drop and read
  // again, and in memory of their own.
  int64_t mapped_bytes = 0, anonymous_bytes = 0;
  // The weights that a decode step of one row reads: all but the experts that are not chosen and other rows of the embedding.
  int64_t bytes_per_token = 0;
  int64_t expert_bytes = 0;  // all experts
  int64_t slot_bytes = 0;    // the largest record of an expert in a file of experts (tiers/expert_file.h)
  int64_t low_bytes = 0;     // copies of all experts in low precision (model/low_experts.h)
};

struct ModelDescription {
  ModelConfig config;
  bool tied = false;  // whether the head is the embedding
  int64_t num_tensors = 0, num_files = 0;
  // Bytes, in this order: the files' tensors; the weights; one expert (mean); the weights that one token reads; a token's K and
  // V; the weights that cannot be used where they lie in the file. All with quantization="none".
  int64_t checkpoint_bytes = 0, weight_bytes = 0, expert_bytes = 0, active_bytes_per_token = 0, kv_bytes_per_token = 0,
          copied_weight_bytes = 0;
  int64_t kv_bytes_per_sequence =
      0;  // K and V of max_position_embeddings tokens; of layers with a window, that of its last window
  int64_t state_bytes_per_sequence = 0;  // of the layers that have a state instead of K and V
  std::vector<WeightOption> options;
  std::vector<std::string> warnings, not_used;   // as ModelWeights has them
  std::vector<std::string> keys_not_understood;  // keys of config.json that matter and that nothing read
};

// Reads config.json and the headers of the tensors' files, no weights. Throws the errors of opening and loading the model.
ModelDescription describe_model(const std::string& path);

// Returns a text such as "sigmoid + bias, 8 of 256 experts in the best 4 of 8 groups, normalised, times 2.5, 1 shared expert of
// width 2048"; "" where there are no experts.
std::string describe_router(const ModelConfig& config);
// Returns a text such as "64 query heads and 8 key/value heads of 64, biases, sinks, window 128 in 12 of 24 layers".
std::string describe_attention(const ModelConfig& config);
// Returns a text such as "yarn, factor 32, theta 150000, 64 of 64 columns".
std::string describe_rope(const ModelConfig& config);
// Removes the keys that mean nothing to inference: those of training, of other software, and of tokens, which the tokenizer knows
// better.
std::vector<std::string> keys_that_matter(std::vector<std::string> keys);

}  // namespace lynx_rt
