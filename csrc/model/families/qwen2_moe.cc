// Qwen1.5-MoE and Qwen2-MoE. Keys and names: transformers' qwen2_moe configuration and the hub's checkpoints.
#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c);
  m.attention_bias = c.boolean_or("qkv_bias", true);
  // Without layer_types, transformers gives every other layer the window, from the first on.
  read_switched_window(c, m, [](int64_t layer, int64_t max_layers) { return layer % 2 == 0 && layer < max_layers; });
  read_experts(c, {.default_top_k = 4}, m);
  m.router.norm_topk = c.boolean_or("norm_topk_prob", false);
  m.shared_expert_width = c.integer("shared_expert_intermediate_size", 1, kMaxDim);
  m.shared_expert_gate = true;
  read_sparse_layers(c, m);
  return m;
}

std::vector<TensorSpec> specs(const ModelConfig& m, const Checkpoint& checkpoint, ModelWeights& weights) {
  return decoder_specs({m, checkpoint, weights}, {{.shared_expert = "shared_expert."}});
}

}  // namespace

const Family& qwen2_moe_family() {
  static const Family family{"qwen2_moe", read_config, specs, {}};
  return family;
}

}  // namespace lynx_rt
