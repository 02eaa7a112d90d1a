// Qwen3-MoE. Keys and names: transformers' qwen3_moe configuration and the hub's checkpoints.
#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c);
  m.qk_norm = QkNorm::kHead;
  m.attention_bias = m.output_bias = c.boolean_or("attention_bias", false);
  read_switched_window(c, m, [](int64_t, int64_t) { return true; });
  read_experts(c, {.default_top_k = 8}, m);
  c.has("shared_expert_intermediate_size");  // of Qwen2-MoE; no expert is shared
  m.router.norm_topk = c.boolean_or("norm_topk_prob", false);
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
  }
  return table.take();
}

}  // namespace

const Family& qwen3_moe_family() {
  static const Family family{"qwen3_moe", read_config, specs, {}};
  return family;
}

}  // namespace lynx_rt
