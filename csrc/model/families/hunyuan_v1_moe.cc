// Hunyuan-A13B. Keys and names: transformers' hunyuan_v1_moe configuration and the hub's checkpoints. Hub configs also have keys
// of the authors' own code, some of them lists with an entry per layer. They must have the values that transformers' code
// assumes.
#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

namespace {

void require_number(const ConfigReader& c, const char* key, int64_t only, int64_t num_layers) {
  if (!c.has(key)) return;
  const int64_t value = read_uniform(c, key, 0, kMaxDim, num_layers);
  if (value != only) unsupported(c, key, str_cat(value), str_cat(only));
}

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c, {.rms_norm_eps = 1e-5});
  m.qk_norm = QkNorm::kHeadAfterRope;
  m.attention_bias = m.output_bias = c.boolean_or("attention_bias", false);
  read_experts(
      c, {.top_k = {"moe_topk", "num_experts_per_tok"}, .width = {"intermediate_size"}, .default_top_k = 1, .per_layer = true},
      m);
  m.shared_expert_width = m.moe_intermediate_size;
  for (LayerConfig& layer : m.layers) layer.moe = true;
  for (const char* key : {"use_qk_norm", "norm_topk_prob", "use_mixed_mlp_moe", "use_rotary_pos_emb"}) require_flag(c, key, true);
  for (const char* key : {"use_mla", "use_cla", "mlp_bias", "group_limited_greedy", "position_embedding_xdrope"})
    require_flag(c, key, false);
  for (const char* of_groups : {"n_group", "topk_group", "routed_scaling_factor"}) c.has(of_groups);  // no groups limit a row
  require_number(c, "moe_intermediate_size", m.moe_intermediate_size, m.num_layers);
  require_number(c, "attention_head_dim", m.head_dim, m.num_layers);
  require_number(c, "num_shared_expert", 1, m.num_layers);
  require_number(c, "moe_layer_num_skipped", 0, m.num_layers);
  return m;
}

std::vector<TensorSpec> specs(const ModelConfig& m, const Checkpoint& checkpoint, ModelWeights& weights) {
  WeightTable table(m, checkpoint, weights);
  table.q_norm = "query_layernorm";
  table.k_norm = "key_layernorm";
  return decoder_specs(std::move(table), {{.router = "gate.wg.weight", .shared_expert = "shared_mlp."}});
}

}  // namespace

const Family& hunyuan_v1_moe_family() {
  static const Family family{"hunyuan_v1_moe", read_config, specs, {}};
  return family;
}

}  // namespace lynx_rt
