// What a family file provides: it translates config keys and tensor names, nothing else.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "checkpoint/config.h"
#include "checkpoint/weights.h"
#include "model/model_config.h"

namespace lynx_rt {

// Weights of one decoder layer; what a model lacks is empty. H hidden, A/G query/kv heads, D head size, E experts, I expert
// width.
struct LayerWeights {
  WeightView input_norm, input_norm_bias;  // [H]
  WeightView q_proj, q_bias;               // [A * D, H], [A * D]
  WeightView k_proj, k_bias;               // [G * D, H], [G * D]
  WeightView v_proj, v_bias;               // [G * D, H], [G * D]
  WeightView o_proj, o_bias;               // [H, A * Dv], [H]
  WeightView q_norm, k_norm;               // as ModelConfig::qk_norm says
  WeightView sinks;                        // [A]
  // MLA: L = kv_lora_rank, R = rope.dim, Q = q_lora_rank; without Q, q_proj is [A * D, H].
  WeightView q_a_proj, q_a_bias, q_a_norm, q_b_proj;         // [Q, H], [Q], [Q], [A * D, Q]
  WeightView kv_a_proj, kv_a_bias, kv_a_norm;                // [L + R, H], [L + R], [L]
  std::vector<WeightView> k_absorb;                          // A of [L, nope]: the K rows of kv_b_proj, transposed
  std::vector<WeightView> v_absorb;                          // A of [Dv, L]: its V rows
  WeightView post_attention_norm, post_attention_norm_bias;  // [H]
  WeightView router, router_bias;                            // [E, H], [E]
  WeightView choice_bias;                                    // [E] float32: RouterRule::bias
  std::vector<ExpertWeights> experts;                        // E
  ExpertWeights shared_expert;                               // of shared_expert_width
  WeightView shared_expert_gate;                             // [1, H]
  ExpertWeights mlp;                                         // the dense MLP
};

struct ModelWeights {
  WeightView embed;                        // [V, H]
  WeightView final_norm, final_norm_bias;  // [H]
  WeightView lm_head, lm_head_bias;        // [V, H], the embedding where they are tied; [V]
  std::vector<LayerWeights> layers;
  WeightCopies copies;  // of a checkpoint's
  std::vector<std::string> warnings;  // of what the checkpoint says otherwise than its config
  std::vector<std::string> not_used;  // what the checkpoint holds beside the weights, for people
  OwnedWeights owned;   // made up
};

// One per file of families/, as `const Family& <file name>_family()`; the build finds the files.
struct Family {
  const char* model_type;
  ModelConfig (*read_config)(const ConfigReader& config);
  // Which tensors fill which slots, in the layout (per expert, fused, transposed) that the checkpoint has.
  std::vector<TensorSpec> (*specs)(const ModelConfig& config, const Checkpoint& checkpoint, ModelWeights& weights);
  std::vector<std::string> ignored_tensors;  // patterns of bind_weights()
};

// Throws kUnsupported listing the supported model types.
const Family& find_family(const std::string& model_type);
std::vector<std::string> supported_model_types();

// Reads <path>/config.json (path: a model folder) through its family. Throws kUnsupported for a model that would be computed
// wrongly, naming the key. Where the config says no dtype it is that of the file's tensors. `unread`: keys of the config that
// nothing looked at.
ModelConfig read_model_config(const std::string& path, std::vector<std::string>* unread = nullptr);

// When the values of weights are read that cannot be used in place, those of quantised checkpoints above all.
enum class ReadCopies : uint8_t { kNow, kWhenPlaced, kNever };
// Binds all weights of a checkpoint, in place where that is possible; layers are sized from the config, and those that the file
// has beyond them are left out. Experts of one layer whose dtypes differ are converted to the model's. The checkpoint must
// outlive what is not read now. Test: tests/model/test_odd_checkpoints.py.
void load_weights(const ModelConfig& config, const Checkpoint& checkpoint, ModelWeights& weights,
                  ReadCopies when = ReadCopies::kNow);
// Makes weights up: checkpoint/dummy.h.
void load_dummy_weights(const ModelConfig& config, bool shared, ModelWeights& weights);

int64_t weight_bytes(const ModelWeights& weights);  // of all weights; tied ones count once

// Brings all weights to the backend, which on the CPU leaves them where they are; copies of weights that it took elsewhere are
// released. `progress`, where given, is called as weights
// are done, with the bytes done and the bytes there are.
using Progress = std::function<void(int64_t done, int64_t total)>;
void place_weights(Backend& backend, ModelWeights& weights, const Progress& progress);

}  // namespace lynx_rt
