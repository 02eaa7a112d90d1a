// Kimi Linear (arXiv 2510.26692): Kimi delta attention between layers with multi-head latent attention without rope. Keys and names:
// transformers' kimi_linear configuration and the hub's checkpoints.
#include <algorithm>

#include "checkpoint/json.h"
#include "model/families/common/deepseek.h"

namespace lynx_rt {

namespace {

// Returns the first of the spellings that is present, else the first.
std::string spelling(const ConfigReader& c, const std::vector<std::string>& keys) {
  for (const std::string& key : keys)
    if (c.has(key)) return key;
  return keys[0];
}

// Reads linear_attn_config, which has the numbers of layers from 1 on, or layer_types; with neither, each fourth layer but the first
// attends in full.
void read_layer_kinds(const ConfigReader& c, const std::optional<ConfigReader>& linear, ModelConfig& m) {
  const std::vector<std::string> types = c.strings_or("layer_types", {});
  const std::vector<int64_t> full =
      linear ? linear->integers_or("full_attn_layers", {}, 1, m.num_layers) : std::vector<int64_t>();
  if (linear) linear->integers_or("kda_layers", {}, 1, m.num_layers);
  if (!types.empty() && int64_t(types.size()) != m.num_layers)
    c.fail_key("layer_types", str_cat("expected one for each of ", m.num_layers, " layers, got ", types.size()));
  for (int64_t l = 0; l < m.num_layers; ++l) {
    LayerConfig& layer = m.layers[size_t(l)];
    bool attends = l > 0 && l % 4 == 0;
    if (!types.empty()) {
      const std::string& type = types[size_t(l)];
      if (type != "full_attention" && type != "linear_attention")
        unsupported(c, "layer_types", quote(type), "full_attention, linear_attention");
      attends = type == "full_attention";
    } else if (!full.empty()) {
      attends = std::find(full.begin(), full.end(), l + 1) != full.end();
    }
    layer.mixer = attends ? MixerKind::kMla : MixerKind::kKda;
    layer.rope = false;
  }
  require_pages(c, "layer_types", m);
}

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c, {.rms_norm_eps = 1e-5, .head_dim = "qk_rope_head_dim"});
  m.max_position_embeddings = c.integer_or(spelling(c, {"model_max_length", "max_position_embeddings"}), 1 << 20, 1, 1 << 28);
  require_flag(c, "mla_use_nope", true);
  read_latent_attention(c, m);
  m.rope = {};
  m.rope.kind = RopeKind::kProportional;  // none of whose pairs turn
  m.rope.dim = m.head_dim - m.qk_nope_head_dim;
  const std::optional<ConfigReader> linear = c.object("linear_attn_config");
  read_layer_kinds(c, linear, m);
  const ConfigReader& from = linear ? *linear : c;
  DeltaShape& d = m.delta;
  d.key_heads = d.value_heads = from.integer(linear ? "num_heads" : "linear_num_heads", 1, kMaxDim);
  d.key_dim = d.value_dim = from.integer(linear ? "head_dim" : "linear_head_dim", 1, 1 << 16);
  d.conv_width = from.integer_or(linear ? "short_conv_kernel_size" : "linear_conv_kernel_dim", 4, 2, DeltaShape::kMaxConvWidth);
  d.channel_decay = true;
  if (d.values() > kMaxDim) from.fail_key("num_heads", str_cat("expected at most ", kMaxDim, " columns of all heads"));

  read_experts(c, {.count = {"num_experts", "num_local_experts"}, .top_k = {"num_experts_per_token", "num_experts_per_tok"}}, m);
  m.shared_expert_width =
      c.integer_or(spelling(c, {"num_shared_experts", "n_shared_experts"}), 1, 0, 1 << 10) * m.moe_intermediate_size;
  require_word(c, "moe_router_activation_func", "sigmoid");
  m.router.kind = RouterKind::kSigmoid;
  m.router.norm_topk = c.boolean_or(spelling(c, {"moe_renormalize", "norm_topk_prob"}), true);
  m.router.scale = float(c.number_or("routed_scaling_factor", 2.446, 0.0, 1e6));
  m.router.group_top2 = true;
  m.choice_bias = true;
  read_router_groups(c, m, spelling(c, {"num_expert_group", "n_group"}));
  c.has("use_grouped_topk");  // of one group, it is no choice
  if (m.num_experts < 2 * m.router.num_groups)
    c.fail_key("num_expert_group", str_cat("expected groups of two or more of num_experts ", m.num_experts, ", got ",
                                           m.router.num_groups, " groups"));
  const int64_t first_dense = c.integer_or("first_k_dense_replace", 1, 0, kMaxLayers);
  if (!read_mlp_layer_types(c, m)) {
    const int64_t every = c.integer_or("moe_layer_freq", 1, 1, 1);
    for (int64_t l = 0; l < m.num_layers; ++l) m.layers[size_t(l)].moe = l >= first_dense && l % every == 0;
    require_mlp_width(c, m);
  }
  return m;
}

std::vector<TensorSpec> specs(const ModelConfig& m, const Checkpoint& checkpoint, ModelWeights& weights) {
  const MlpNames names{"w1", "w3", "w2"};
  return decoder_specs({m, checkpoint, weights}, {{.block = "block_sparse_moe.", .expert = names}, {.expert = names}});
}

}  // namespace

const Family& kimi_linear_family() {
  static const Family family{"kimi_linear", read_config, specs, {}};
  return family;
}

}  // namespace lynx_rt
