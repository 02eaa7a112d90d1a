// Nemotron-H and Nemotron 3 (arXiv 2504.03624): each layer is one of Mamba2, attention without rope, an MLP, or experts. Keys and names:
// transformers' nemotron_h configuration and the hub's checkpoints.
#include <limits>

#include "checkpoint/json.h"
#include "model/families/common/deepseek.h"

namespace lynx_rt {

namespace {

LayerConfig layer_of(const std::string& kind) {
  LayerConfig layer;
  layer.rope = false;
  if (kind == "linear_attention" || kind == "mamba" || kind == "M") {
    layer.mixer = MixerKind::kMamba2;
    layer.mlp = false;
  } else if (kind == "full_attention" || kind == "attention" || kind == "*") {
    layer.mlp = false;
  } else {
    layer.mixer = MixerKind::kNone;
    layer.moe = kind == "moe" || kind == "E";
    layer.mlp = layer.moe || kind == "mlp" || kind == "-";
  }
  return layer;
}

// Returns the layers by layers_block_type, or by hybrid_override_pattern, a letter for each.
std::vector<LayerConfig> read_layers(const ConfigReader& c) {
  const std::string key = c.first_of({"layers_block_type", "hybrid_override_pattern"});
  std::vector<std::string> kinds;
  if (key == "layers_block_type")
    kinds = c.strings_or(key, {});
  else
    for (const char letter : c.string(key)) kinds.emplace_back(1, letter);
  c.has("hybrid_override_pattern");
  c.has("num_hidden_layers");  // the number of kinds counts
  if (kinds.empty() || int64_t(kinds.size()) > kMaxLayers)
    c.fail_key(key, str_cat("expected 1..", kMaxLayers, " layers, got ", kinds.size()));
  std::vector<LayerConfig> layers;
  for (const std::string& kind : kinds) {
    layers.push_back(layer_of(kind));
    if (layers.back().mixer == MixerKind::kNone && !layers.back().mlp)
      unsupported(c, key, quote(kind), "linear_attention (M), full_attention (*), moe (E), mlp (-)");
  }
  return layers;
}

void read_mamba(const ConfigReader& c, ModelConfig& m) {
  Mamba2Shape& s = m.mamba;
  s.heads = c.integer("mamba_num_heads", 1, kMaxDim);
  s.head_dim = c.integer("mamba_head_dim", 1, 1 << 16);
  s.groups = c.integer("n_groups", 1, kMaxDim);
  s.state_dim = c.integer("ssm_state_size", 1, 1 << 16);
  s.conv_width = c.integer_or("conv_kernel", 4, 2, DeltaShape::kMaxConvWidth);
  if (s.heads % s.groups != 0)
    c.fail_key("n_groups", str_cat("expected a divisor of mamba_num_heads ", s.heads, ", got ", s.groups));
  if (s.values() > kMaxDim || s.groups * s.state_dim > kMaxDim)
    c.fail_key("mamba_num_heads", str_cat("expected at most ", kMaxDim, " columns of all heads"));
  m.mixer_bias = c.boolean_or("use_bias", false);
  m.conv_bias = c.boolean_or("use_conv_bias", true);
  require_word(c, "mamba_hidden_act", "silu");
  // As in the authors' code; transformers 5.23 takes time_step_min and infinity, in prefill alone.
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const std::vector<double> limit = c.numbers_or("time_step_limit", {0, kInfinity}, 0, kInfinity);
  if (limit.size() != 2 || limit[0] > limit[1])
    c.fail_key("time_step_limit", str_cat("expected two numbers in order, got ", limit.size()));
  m.min_dt = float(limit[0]);
  m.max_dt = float(limit[1]);
}

ModelConfig read_config(const ConfigReader& c) {
  const std::vector<LayerConfig> layers = read_layers(c);
  c.integer("head_dim", 1, 1 << 16);  // its default in transformers does not follow from the other sizes
  ModelConfig m = read_common(c, {.rms_norm_eps = 1e-5,
                                  .hidden_act = "mlp_hidden_act",
                                  .relu2 = true,
                                  .norm_eps = "layer_norm_epsilon",
                                  .num_layers = int64_t(layers.size())});
  m.layers = layers;
  require_pages(c, c.has("layers_block_type") ? "layers_block_type" : "hybrid_override_pattern", m);
  require_flag(c, "attention_bias", false);
  if (c.has("sliding_window")) unsupported(c, "sliding_window", "", "none");
  if (m.has_mixer(MixerKind::kMamba2)) read_mamba(c, m);
  m.mlp_bias = c.boolean_or("mlp_bias", false);
  if (m.num_moe_layers() > 0) {
    if (c.has("moe_latent_size")) unsupported(c, "moe_latent_size", str_cat(c.integer("moe_latent_size", 1, kMaxDim)), "none");
    read_experts(c, {.count = {"n_routed_experts"}, .default_top_k = 2}, m);
    m.router.scale = float(c.number_or("routed_scaling_factor", 1, 0.0, 1e6));
    read_sigmoid_router(c, m);
    m.shared_expert_width = c.integer("moe_shared_expert_intermediate_size", 1, kMaxDim);
  }
  require_mlp_width(c, m);
  // Known keys without effect here: the state is float32, the scan has no chunks, no further tokens are predicted.
  for (const char* key :
       {"chunk_size", "expand", "hidden_dropout", "mamba_proj_bias", "mamba_ssm_cache_dtype", "moe_shared_expert_overlap",
        "mtp_layers_block_type", "mtp_hybrid_override_pattern", "n_shared_experts", "num_logits_to_keep",
        "rescale_prenorm_residual", "residual_in_fp32", "time_step_floor", "time_step_max", "time_step_min", "use_mamba_kernels"})
    c.has(key);
  return m;
}

std::vector<TensorSpec> specs(const ModelConfig& m, const Checkpoint& checkpoint, ModelWeights& weights) {
  WeightTable table(m, checkpoint, weights);
  table.embed = "embeddings";
  table.final_norm = "norm_f";
  table.input_norm = table.mlp_norm = "norm";  // a layer has one
  table.attention = "mixer.";
  const MlpNames names{"up_proj", nullptr, "down_proj"};
  return decoder_specs(std::move(table), {{.block = "mixer.", .mlp = names, .expert = names}});
}

}  // namespace

const Family& nemotron_h_family() {
  static const Family family{"nemotron_h", read_config, specs, {"mtp.*"}};
  return family;
}

}  // namespace lynx_rt
