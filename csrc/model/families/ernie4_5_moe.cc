// ERNIE 4.5, the text models with experts. Keys and names: transformers' ernie4_5_moe configuration and the hub's checkpoints.
#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c, {.rms_norm_eps = 1e-5, .rope_theta = 5e5});
  m.rope.interleaved = true;
  m.tie_word_embeddings = c.boolean_or("tie_word_embeddings", true);
  m.attention_bias = m.output_bias = m.mlp_bias = m.lm_head_bias = c.boolean_or("use_bias", false);
  read_experts(c, {{"moe_num_experts", "num_experts"}, {"moe_k", "num_experts_per_tok"}, {"moe_intermediate_size"}, 6}, m);
  m.shared_expert_width = c.integer_or("moe_num_shared_experts", 2, 0, 1 << 10) * m.moe_intermediate_size;
  m.choice_bias = true;
  m.router.min_sum = float(c.number_or("moe_norm_min", 1e-12, 0.0, 1.0));
  require_word(c, "moe_gate", "topk");
  const int64_t begin = c.integer_or("moe_layer_start_index", 1, 0, kMaxLayers);
  const int64_t end = c.integer_or("moe_layer_end_index", -1, -1, kMaxLayers);  // the last MoE layer; -1 = the model's last
  const int64_t interval = c.integer_or("moe_layer_interval", 1, 1, kMaxLayers);
  for (int64_t l = 0; l < m.num_layers; ++l)
    m.layers[size_t(l)].moe = (l + 1) % interval == 0 && l >= begin && (end == -1 || l <= end);
  require_mlp_width(c, m);
  return m;
}

std::vector<TensorSpec> specs(const ModelConfig& m, const Checkpoint& checkpoint, ModelWeights& weights) {
  WeightTable table(m, checkpoint, weights);
  table.add_model();
  for (int64_t l = 0; l < m.num_layers; ++l) {
    const std::string mlp = table.layer_name(l) + "mlp.", bias = "moe_statics.e_score_correction_bias";
    LayerWeights& w = table.layer(l);
    table.add_norms(l);
    table.add_attention(l);
    if (!m.layers[size_t(l)].moe) {
      table.add_mlp(mlp, m.intermediate_size, w.mlp, m.mlp_bias);
      continue;
    }
    table.add(mlp + "gate.weight", {m.num_experts, m.hidden_size}, &w.router, WeightUse::kRouter);
    table.add_float32(mlp + (table.has(mlp + "gate." + bias) ? "gate." : "") + bias, {1, m.num_experts}, &w.choice_bias);
    table.add_experts(mlp + "experts.", l);
    if (m.shared_expert_width > 0) table.add_mlp(mlp + "shared_experts.", m.shared_expert_width, w.shared_expert, m.mlp_bias);
  }
  return table.take();
}

}  // namespace

const Family& ernie4_5_moe_family() {
  static const Family family{"ernie4_5_moe", read_config, specs, {"model.mtp_*", "mtp_*"}};
  return family;
}

}  // namespace lynx_rt
