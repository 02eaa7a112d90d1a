// Gemma 4, the text model (in a checkpoint of its own, or as a part of gemma4). Keys and names: transformers' gemma4 configuration and
// the hub's checkpoints. The small models, whose layers have embeddings of their own and share keys and values, are refused.
#include <charconv>
#include <cmath>

#include "checkpoint/json.h"
#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

namespace {

constexpr int64_t kMaxHeadDim = 1 << 16;

// Returns whether each layer has a window: those that layer_types says, five of six where it is absent, and never the last one.
std::vector<bool> sliding_layers(const ConfigReader& c, const ModelConfig& m) {
  std::vector<bool> sliding(size_t(m.num_layers));
  const std::vector<std::string> types = c.strings_or("layer_types", {});
  if (!types.empty() && int64_t(types.size()) != m.num_layers)
    c.fail_key("layer_types", str_cat("expected one for each of ", m.num_layers, " layers, got ", types.size()));
  for (size_t l = 0; l < sliding.size(); ++l) {
    sliding[l] = types.empty() ? (l + 1) % 6 != 0 : types[l] == "sliding_attention";
    if (!types.empty() && !sliding[l] && types[l] != "full_attention")
      unsupported(c, "layer_types", quote(types[l]), "full_attention, sliding_attention");
  }
  sliding.back() = false;
  return sliding;
}

// Reads the head size and the number of key/value heads of a layer that states them; 0 where it does not.
void read_heads(const ConfigReader& c, const char* kv_heads, const char* head_dim, const ModelConfig& m, LayerConfig& layer) {
  if (c.has(kv_heads)) layer.num_kv_heads = c.integer(kv_heads, 1, m.num_heads);
  if (layer.num_kv_heads > 0 && m.num_heads % layer.num_kv_heads != 0)
    c.fail_key(kv_heads, str_cat("expected a divisor of num_attention_heads ", m.num_heads, ", got ", layer.num_kv_heads));
  if (c.has(head_dim)) layer.head_dim = c.integer(head_dim, 2, kMaxHeadDim);
  if (layer.head_dim % 2 != 0) c.fail_key(head_dim, str_cat("expected an even number, got ", layer.head_dim));
}

// Full layers have heads of their own: in global_head_dim and num_global_key_value_heads (the hub), or in per_layer_config
// (transformers 5), which has an object for each layer that differs.
void read_layers(const ConfigReader& c, ModelConfig& m) {
  const std::vector<bool> sliding = sliding_layers(c, m);
  const int64_t window = c.integer_or("sliding_window", 512, 1, 1 << 28);
  const bool k_eq_v = c.boolean_or("attention_k_eq_v", false);
  const std::optional<ConfigReader> overrides = c.object("per_layer_config");
  LayerConfig full;
  full.head_dim = 512;
  read_heads(c, "num_global_key_value_heads", "global_head_dim", m, full);
  if (!k_eq_v) full.num_kv_heads = 0;  // the key has no effect there
  if (overrides) full.num_kv_heads = full.head_dim = 0;
  full.v_from_k = k_eq_v;
  for (size_t l = 0; l < m.layers.size(); ++l) {
    const bool moe = m.layers[l].moe;
    m.layers[l] = sliding[l] ? LayerConfig{.window = window} : full;
    m.layers[l].moe = moe;
  }
  if (!overrides) return;
  for (const std::string& key : overrides->keys()) {
    int64_t l = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), l);
    const std::optional<ConfigReader> of_layer = overrides->object(key);
    if (error != std::errc() || end != key.data() + key.size() || l < 0 || l >= m.num_layers)
      overrides->fail_key(key, str_cat("expected the number of a layer, 0 to ", m.num_layers - 1));
    if (!of_layer) continue;
    for (const std::string& name : of_layer->keys())
      if (name != "head_dim" && name != "num_key_value_heads")
        unsupported(*of_layer, name, "of one layer", "head_dim, num_key_value_heads");
    read_heads(*of_layer, "num_key_value_heads", "head_dim", m, m.layers[size_t(l)]);
  }
}

// Layers of a type share a rope table, so their heads must be of one size.
int64_t head_dim_of_type(const ConfigReader& c, const ModelConfig& m, bool sliding) {
  int64_t head_dim = 0;
  for (const LayerConfig& layer : m.layers) {
    if ((layer.window > 0) != sliding) continue;
    if (head_dim > 0 && head_dim != m.head_dim_of(layer))
      unsupported(c, "per_layer_config", str_cat("with heads of ", head_dim, " and ", m.head_dim_of(layer)),
                  "one head size for all layers of a type");
    head_dim = m.head_dim_of(layer);
  }
  return head_dim;
}

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c, {.rope_by_layer_type = true, .hidden_act = "hidden_activation", .gelu = true});
  m.tie_word_embeddings = c.boolean_or("tie_word_embeddings", true);
  m.num_kv_heads = c.integer_or("num_key_value_heads", 4, 1, m.num_heads);
  m.head_dim = m.v_head_dim = c.integer_or("head_dim", 256, 2, kMaxHeadDim);
  m.max_position_embeddings = c.integer_or("max_position_embeddings", 131072, 1, 1 << 28);
  for (const auto& [key, what] : {std::pair{"hidden_size_per_layer_input", "embeddings of every layer"},
                                  std::pair{"num_kv_shared_layers", "layers that share keys and values"}}) {
    const int64_t absent = key == std::string("hidden_size_per_layer_input") ? 256 : 0;
    if (const int64_t v = c.integer_or(key, absent, 0, kMaxDim); v != 0)
      unsupported(c, key, str_cat(v, " (", what, ", as Gemma 4 E2B and E4B have them)"), "0");
  }
  c.has("use_double_wide_mlp");         // of layers that share keys and values
  c.has("vocab_size_per_layer_input");  // of embeddings of every layer
  if (const std::string use = c.string_or("use_bidirectional_attention", "vision"); use != "vision")
    unsupported(c, "use_bidirectional_attention", quote(use), "null, vision");
  m.attention_bias = m.output_bias = c.boolean_or("attention_bias", false);
  m.attention_scale = 1;
  m.qk_norm = QkNorm::kHead;
  m.v_norm = true;
  m.sandwich_norms = true;
  m.embedding_multiplier = float(std::sqrt(double(m.hidden_size)));
  m.soft_cap = float(c.number_or("final_logit_softcapping", 0, 1e-6, 1e6));
  if (c.boolean_or("enable_moe_block", false)) {
    read_experts(c, {.count = {"num_experts"}, .top_k = {"top_k_experts"}}, m);
    m.shared_expert_width = c.integer("intermediate_size", 1, kMaxDim);
    m.router_multiplier = float(1 / std::sqrt(double(m.hidden_size)));
    for (LayerConfig& layer : m.layers) layer.moe = true;
  }
  require_mlp_width(c, m);
  read_layers(c, m);

  RopeConfig full;
  full.kind = RopeKind::kProportional;
  full.theta = 1e6;
  m.rope = read_layer_rope(c, "full_attention", head_dim_of_type(c, m, false), full, 0.25);
  if (const int64_t head_dim = head_dim_of_type(c, m, true))
    m.window_rope = read_layer_rope(c, "sliding_attention", head_dim, {}, 1);
  return m;
}

std::vector<TensorSpec> specs(const ModelConfig& m, const Checkpoint& checkpoint, ModelWeights& weights) {
  MoeNames names;
  if (m.num_experts > 0) {
    names.block = "";
    names.router = "router.proj.weight";
    names.shared_expert = "mlp.";
  }
  return decoder_specs({m, checkpoint, weights}, {names});
}

}  // namespace

const Family& gemma4_text_family() {
  static const Family family{"gemma4_text", read_config, specs, {}};
  return family;
}

}  // namespace lynx_rt
