// Qwen1.5-MoE and Qwen2-MoE. Keys and names: transformers' qwen2_moe configuration and the hub's checkpoints.
#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c);
  m.attention_bias = c.boolean_or("qkv_bias", true);
  // Every other layer, from the first on: so transformers reads a config without layer_types.
  read_switched_window(c, m, [](int64_t layer, int64_t max_layers) { return layer % 2 == 0 && layer < max_layers; });
  read_experts(c, {.default_top_k = 4}, m);
  m.router.norm_topk = c.boolean_or("norm_topk_prob", false);
  m.shared_expert_width = c.integer("shared_expert_intermediate_size", 1, kMaxDim);
  m.shared_expert_gate = true;
  read_sparse_layers(c, m);
  return m;
}

std::vector<TensorSpec> specs(const ModelConfig& m, const Checkpoint& checkpoint, ModelWeights& weights) {
  WeightTable table(m, checkpoint, weights);
  table.add_model();
  for (int64_t l = 0; l < m.num_layers; ++l) {
    const std::string mlp = table.layer_name(l) + "mlp.";
    table.add_norms(l);
    table.add_attention(l);
    if (!m.layers[size_t(l)].moe) {
      table.add_dense_mlp(l);
      continue;
    }
    table.add_router(mlp + "gate.weight", l);
    table.add_experts(mlp + "experts.", l);
    table.add_mlp(mlp + "shared_expert.", m.shared_expert_width, table.layer(l).shared_expert);
    if (m.shared_expert_gate)
      table.add(mlp + "shared_expert_gate.weight", {1, m.hidden_size}, &table.layer(l).shared_expert_gate, WeightUse::kRouter);
  }
  return table.take();
}

}  // namespace

const Family& qwen2_moe_family() {
  static const Family family{"qwen2_moe", read_config, specs, {}};
  return family;
}

}  // namespace lynx_rt
