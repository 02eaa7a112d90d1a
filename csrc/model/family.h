// What a family file provides: it translates config keys and tensor names, nothing else.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "checkpoint/config.h"
#include "checkpoint/weights.h"

namespace lynx_rt {

// Weights of one decoder layer. H hidden, A/G query/kv heads, D head size, E experts, I expert width.
struct LayerWeights {
  WeightView input_norm;               // [H]
  WeightView q_proj, q_bias;           // [A * D, H], [A * D] or empty
  WeightView k_proj, k_bias;           // [G * D, H], [G * D] or empty
  WeightView v_proj, v_bias;           // [G * D, H], [G * D] or empty
  WeightView o_proj, o_bias;           // [H, A * D], [H] or empty
  WeightView q_norm, k_norm;           // [D] or empty
  WeightView post_attention_norm;      // [H]
  WeightView router;                   // [E, H]; empty in a dense layer
  std::vector<ExpertWeights> experts;  // E; empty in a dense layer
  ExpertWeights mlp;                   // the dense MLP; empty in an MoE layer
};

struct ModelWeights {
  WeightView embed;       // [V, H]
  WeightView final_norm;  // [H]
  WeightView lm_head;     // [V, H]; the embedding where they are tied
  std::vector<LayerWeights> layers;
  OwnedWeights owned;
};

struct Family {
  const char* model_type;
  ModelConfig (*read_config)(const ConfigReader& config);
  // Which tensors fill which slots, in the layout (per expert or fused) that the checkpoint has.
  std::vector<TensorSpec> (*specs)(const ModelConfig& config, const Checkpoint& checkpoint, ModelWeights& weights);
  std::vector<std::string> ignored_tensors;  // patterns of bind_weights()
};

// Throws kUnsupported listing the supported model types.
const Family& find_family(const std::string& model_type);
std::vector<std::string> supported_model_types();

// Reads <path>/config.json (path: a model folder) through its family.
ModelConfig read_model_config(const std::string& path);

// Binds all weights of a checkpoint in place; layers are sized from the config.
void load_weights(const ModelConfig& config, const Checkpoint& checkpoint, ModelWeights& weights);
// Makes weights up: checkpoint/dummy.h.
void load_dummy_weights(const ModelConfig& config, bool shared, ModelWeights& weights);

int64_t weight_bytes(const ModelWeights& weights);  // of all weights; tied ones count once

// Brings all weights to the backend, which on the CPU leaves them where they are. `progress`, where given, is called as weights
// are done, with the bytes done and the bytes there are.
using Progress = std::function<void(int64_t done, int64_t total)>;
void place_weights(Backend& backend, ModelWeights& weights, const Progress& progress);

// Families; one function per file under families/.
const Family& qwen3_family();
const Family& qwen3_moe_family();

}  // namespace lynx_rt
