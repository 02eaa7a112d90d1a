// LFM2 with experts (LFM2-8B-A1B). Keys and names: transformers' lfm2_moe configuration and the hub's checkpoints.
#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

#include "checkpoint/json.h"

namespace lynx_rt {

namespace {

void read_layer_kinds(const ConfigReader& c, ModelConfig& m) {
  const std::vector<std::string> types = c.strings_or("layer_types", {});
  if (int64_t(types.size()) != m.num_layers)
    c.fail_key("layer_types", str_cat("expected one for each of ", m.num_layers, " layers, got ", types.size()));
  for (size_t l = 0; l < types.size(); ++l) {
    if (types[l] != "conv" && types[l] != "full_attention")
      unsupported(c, "layer_types", quote(types[l]), "conv, full_attention");
    m.layers[l].mixer = types[l] == "conv" ? MixerKind::kShortConv : MixerKind::kGqa;
  }
  require_pages(c, "layer_types", m);
}

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c, {.rms_norm_eps = 1e-5, .rope_theta = 1e6, .norm_eps = "norm_eps"});
  read_layer_kinds(c, m);
  m.tie_word_embeddings = c.boolean_or(c.has("tie_embedding") ? "tie_embedding" : "tie_word_embeddings", true);
  m.qk_norm = QkNorm::kHead;
  m.short_conv_width = c.integer_or("conv_L_cache", 3, 2, DeltaShape::kMaxConvWidth);
  m.mixer_bias = m.conv_bias = c.boolean_or("conv_bias", false);
  read_experts(c, {.default_top_k = 4}, m);
  m.router.kind = RouterKind::kSigmoid;
  m.router.norm_topk = c.boolean_or("norm_topk_prob", true);
  m.router.scale = float(c.number_or("routed_scaling_factor", 1, 0.0, 1e6));
  m.choice_bias = c.boolean_or("use_expert_bias", true);
  const int64_t dense = c.integer_or("num_dense_layers", 2, 0, kMaxLayers);
  for (int64_t l = 0; l < m.num_layers; ++l) m.layers[size_t(l)].moe = l >= dense;
  require_mlp_width(c, m);
  return m;
}

std::vector<TensorSpec> specs(const ModelConfig& m, const Checkpoint& checkpoint, ModelWeights& weights) {
  WeightTable table(m, checkpoint, weights);
  table.final_norm = "embedding_norm";
  table.input_norm = "operator_norm";
  table.mlp_norm = "ffn_norm";
  table.q_norm = "q_layernorm";
  table.k_norm = "k_layernorm";
  table.o_proj = "out_proj";
  const MlpNames names{"w1", "w3", "w2"};
  return decoder_specs(std::move(table),
                       {{.block = "feed_forward.", .mlp = names, .choice_bias = "expert_bias", .expert = names}});
}

}  // namespace

const Family& lfm2_moe_family() {
  static const Family family{"lfm2_moe", read_config, specs, {}};
  return family;
}

}  // namespace lynx_rt
