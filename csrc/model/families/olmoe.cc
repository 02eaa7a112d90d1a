// OLMoE. Keys and names: transformers' olmoe configuration and the hub's checkpoints.
#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c, {.rms_norm_eps = 1e-5});
  m.qk_norm = QkNorm::kWidth;
  m.attention_bias = m.output_bias = c.boolean_or("attention_bias", false);
  m.clip_qkv = float(c.number_or("clip_qkv", 0, 1e-6, 1e9));
  read_experts(c, {.width = {"intermediate_size"}, .default_top_k = 8}, m);
  m.router.norm_topk = c.boolean_or("norm_topk_prob", false);
  for (LayerConfig& layer : m.layers) layer.moe = true;
  return m;
}

std::vector<TensorSpec> specs(const ModelConfig& m, const Checkpoint& checkpoint, ModelWeights& weights) {
  WeightTable table(m, checkpoint, weights);
  table.add_model();
  for (int64_t l = 0; l < m.num_layers; ++l) {
    const std::string mlp = table.layer_name(l) + "mlp.";
    table.add_norms(l);
    table.add_attention(l);
    table.add_router(mlp + "gate.weight", l);
    table.add_experts(mlp + "experts.", l);
  }
  return table.take();
}

}  // namespace

const Family& olmoe_family() {
  static const Family family{"olmoe", read_config, specs, {}};
  return family;
}

}  // namespace lynx_rt
