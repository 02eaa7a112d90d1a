// Granite 3 MoE. Keys and names: transformers' granitemoe configuration and the hub's checkpoints.
// Experts are fused in every layout; the hub calls them input_linear and output_linear. granitemoeshared has a shared expert beside.
#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c);
  m.attention_bias = m.output_bias = c.boolean_or("attention_bias", false);
  const auto multiplier = [&](const char* key) { return float(c.number_or(key, 1, 1e-6, 1e6)); };
  m.attention_scale = multiplier("attention_multiplier");  // replaces 1 / sqrt(head size), with 1 where the key is absent
  m.embedding_multiplier = multiplier("embedding_multiplier");
  m.residual_multiplier = multiplier("residual_multiplier");
  m.logits_multiplier = 1 / multiplier("logits_scaling");
  read_experts(c, {.width = {"intermediate_size"}, .default_top_k = 2}, m);
  for (LayerConfig& layer : m.layers) layer.moe = true;
  return m;
}

void add_shared_expert(WeightTable& table, int64_t l) {
  const int64_t hidden = table.m.hidden_size, width = table.m.shared_expert_width;
  const std::string name = table.layer_name(l) + "shared_mlp.";
  ExpertWeights& w = table.layer(l).shared_expert;
  const std::span<ExpertWeights> placed(&w, 1);
  table.add({name + "input_linear.weight", {2 * width, hidden}, {{&w.gate, 0, width}, {&w.up, width, width}}}, {placed});
  table.add(whole_tensor(name + "output_linear.weight", {hidden, width}, &w.down), {placed});
}

std::vector<TensorSpec> specs(const ModelConfig& m, const Checkpoint& checkpoint, ModelWeights& weights) {
  MoeNames released{
      .block = "block_sparse_moe.", .router = "router.layer.weight", .experts = "", .add_shared_expert = add_shared_expert},
      renamed = released;
  released.add_experts = [](WeightTable& table, const std::string& prefix, int64_t l) {
    table.add_fused_experts(prefix + "input_linear.weight", prefix + "output_linear.weight", l);
  };
  renamed.router = "router.weight";
  renamed.add_experts = [](WeightTable& table, const std::string& prefix, int64_t l) {
    table.add_fused_experts(prefix + "experts.gate_up_proj", prefix + "experts.down_proj", l);
  };
  return decoder_specs({m, checkpoint, weights}, {released, renamed});
}

}  // namespace

const Family& granitemoe_family() {
  static const Family family{"granitemoe", read_config, specs, {}};
  return family;
}

}  // namespace lynx_rt
