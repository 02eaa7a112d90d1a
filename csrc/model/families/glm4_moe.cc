// GLM-4.5, 4.6 and 4.5-Air (arXiv 2508.06471). Keys and names: transformers' glm4_moe configuration and the hub's checkpoints.
#include "model/families/common/deepseek.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c, {.rms_norm_eps = 1e-5, .partial_rotary = true, .partial_rotary_factor = 0.5});
  m.attention_bias = c.boolean_or("attention_bias", false);  // q, k, v alone
  if (c.boolean_or("use_qk_norm", false)) m.qk_norm = QkNorm::kHead;
  read_deepseek_experts(c, 1, 1.0, 8, m);
  read_sigmoid_router(c, m);
  return m;
}

std::vector<TensorSpec> specs(const ModelConfig& m, const Checkpoint& checkpoint, ModelWeights& weights) {
  WeightTable table(m, checkpoint, weights);
  table.add_model();
  for (int64_t l = 0; l < m.num_layers; ++l) {
    table.add_norms(l);
    table.add_attention(l);
    add_deepseek_mlp(table, l);
  }
  return table.take();
}

}  // namespace

const Family& glm4_moe_family() {
  static const Family family{"glm4_moe", read_config, specs, {}};
  return family;
}

}  // namespace lynx_rt
