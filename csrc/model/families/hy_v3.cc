// Hunyuan 3. Keys and names: transformers' hy_v3 configuration and the hub's checkpoints.
#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c, {.rms_norm_eps = 1e-5, .rope_theta = 11158840});
  c.integer("head_dim", 2, 1 << 16);  // 128 in transformers where it is absent, not H / A: it must be there
  m.qk_norm = QkNorm::kHead;
  m.attention_bias = m.output_bias = c.boolean_or("attention_bias", false);
  m.mlp_bias = c.boolean_or("mlp_bias", false);  // of the dense MLP and the shared expert
  read_experts(c, {.count = {"num_experts", "num_local_experts"}, .default_top_k = 8}, m);
  m.shared_expert_width = c.integer_or("num_shared_experts", 1, 1, 1 << 10) * m.moe_intermediate_size;
  m.router.kind = RouterKind::kSigmoid;
  m.router.scale = float(c.number_or("router_scaling_factor", 2.826, 0.0, 1e6));
  m.choice_bias = true;
  c.has("enable_moe_fp32_combine");  // sums are float32 here
  if (!read_mlp_layer_types(c, m)) {
    for (size_t l = 1; l < m.layers.size(); ++l) m.layers[l].moe = true;
    require_mlp_width(c, m);
  }
  return m;
}

std::vector<TensorSpec> specs(const ModelConfig& m, const Checkpoint& checkpoint, ModelWeights& weights) {
  MoeNames released{.router = "router.gate.weight", .choice_bias = "expert_bias", .shared_expert = "shared_mlp."};
  MoeNames renamed{.choice_bias = "e_score_correction_bias"};
  return decoder_specs({m, checkpoint, weights}, {released, renamed});
}

}  // namespace

const Family& hy_v3_family() {
  static const Family family{"hy_v3", read_config, specs, {}};
  return family;
}

}  // namespace lynx_rt
