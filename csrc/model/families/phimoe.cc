// Phi-3.5-MoE. Keys and names: transformers' phimoe configuration and the hub's checkpoints. The key rms_norm_eps is that of its
// LayerNorms; in memory, transformers 5 has mlp.router for block_sparse_moe.gate.
#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c, {.rms_norm_eps = 1e-5, .rope_theta = 1e6});
  m.norm = NormKind::kLayer;
  m.attention_bias = m.output_bias = c.boolean_or("attention_bias", false);
  m.lm_head_bias = c.boolean_or("lm_head_bias", false);
  read_uniform_window(c, m);
  read_experts(c, {.width = {"intermediate_size"}, .default_top_k = 2}, m);
  if (m.num_experts_per_tok != 2) unsupported(c, "num_experts_per_tok", str_cat(m.num_experts_per_tok), "2");
  m.router.kind = RouterKind::kSparsemixer;
  m.router.norm_topk = false;
  m.router.jitter = float(c.number_or("router_jitter_noise", 0.01, 0, 1));
  for (LayerConfig& layer : m.layers) layer.moe = true;
  if (m.rope.kind != RopeKind::kDefault && m.rope.kind != RopeKind::kLongrope)
    unsupported(c, "rope_type", "other than longrope", "default, longrope");
  if (m.rope.kind == RopeKind::kLongrope && !(m.rope.short_mscale && m.rope.long_mscale))
    c.fail_key("short_mscale", "missing, as long_mscale may be; longrope of this family has both");
  return m;
}

std::vector<TensorSpec> specs(const ModelConfig& m, const Checkpoint& checkpoint, ModelWeights& weights) {
  const MoeNames released{.block = "block_sparse_moe.", .expert = {"w1", "w3", "w2"}};
  const MoeNames renamed{.router = "router.weight", .expert = {"w1", "w3", "w2"}};
  return decoder_specs({m, checkpoint, weights}, {released, renamed});
}

}  // namespace

const Family& phimoe_family() {
  static const Family family{"phimoe", read_config, specs, {}};
  return family;
}

}  // namespace lynx_rt
