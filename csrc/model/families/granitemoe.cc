// Granite 3 MoE. Keys and names: transformers' granitemoe configuration and the hub's checkpoints.
// Experts are fused in every layout; the hub calls them input_linear and output_linear.
#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c);
  m.attention_bias = m.output_bias = c.boolean_or("attention_bias", false);
  const auto multiplier = [&](const char* key) { return float(c.number_or(key, 1, 1e-6, 1e6)); };
  m.attention_scale = multiplier("attention_multiplier");  // instead of 1 / sqrt(head size), also where it is absent
  m.embedding_multiplier = multiplier("embedding_multiplier");
  m.residual_multiplier = multiplier("residual_multiplier");
  m.logits_multiplier = 1 / multiplier("logits_scaling");
  read_experts(c, {.width = {"intermediate_size"}, .default_top_k = 2}, m);
  for (LayerConfig& layer : m.layers) layer.moe = true;
  return m;
}

std::vector<TensorSpec> specs(const ModelConfig& m, const Checkpoint& checkpoint, ModelWeights& weights) {
  WeightTable table(m, checkpoint, weights);
  table.add_model();
  for (int64_t l = 0; l < m.num_layers; ++l) {
    const std::string moe = table.layer_name(l) + "block_sparse_moe.";
    const bool renamed = table.has(moe + "router.weight");
    table.add_norms(l);
    table.add_attention(l);
    table.add_router(moe + (renamed ? "router.weight" : "router.layer.weight"), l);
    if (renamed)
      table.add_fused_experts(moe + "experts.gate_up_proj", moe + "experts.down_proj", l);
    else
      table.add_fused_experts(moe + "input_linear.weight", moe + "output_linear.weight", l);
  }
  return table.take();
}

}  // namespace

const Family& granitemoe_family() {
  static const Family family{"granitemoe", read_config, specs, {}};
  return family;
}

}  // namespace lynx_rt
