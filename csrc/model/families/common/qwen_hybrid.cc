#include "model/families/common/qwen_hybrid.h"

#include <algorithm>

#include "checkpoint/json.h"
#include "model/families/common/qwen_vision.h"

namespace lynx_rt {

namespace {

void read_layer_kinds(const ConfigReader& c, ModelConfig& m) {
  const int64_t interval = c.integer_or("full_attention_interval", 4, 1, kMaxLayers);
  const std::vector<std::string> types = c.strings_or("layer_types", {});
  if (!types.empty() && int64_t(types.size()) != m.num_layers)
    c.fail_key("layer_types", str_cat("expected one for each of ", m.num_layers, " layers, got ", types.size()));
  for (int64_t l = 0; l < m.num_layers; ++l) {
    const std::string type = !types.empty() ? types[size_t(l)] : (l + 1) % interval == 0 ? "full_attention" : "linear_attention";
    if (type != "full_attention" && type != "linear_attention")
      unsupported(c, "layer_types", quote(type), "full_attention, linear_attention");
    m.layers[size_t(l)].mixer = type == "full_attention" ? MixerKind::kGqa : MixerKind::kGatedDelta;
  }
  require_pages(c, "layer_types", m);
}

}  // namespace

ModelConfig read_hybrid(const ConfigReader& c) {
  c.integer("head_dim", 1, 1 << 16);  // its default in transformers does not follow from the other sizes
  ModelConfig m = read_common(c, {.partial_rotary = true, .partial_rotary_factor = 0.25});
  read_mrope(c, {11, 11, 10}, m);
  read_layer_kinds(c, m);
  m.qk_norm = QkNorm::kHead;
  // Files of llama.cpp hold 1 + w, and value heads in another order (gguf_config()).
  m.norm_offset = c.boolean_or("norm_offset", true);
  m.delta.tiled = c.boolean_or("linear_value_heads_tiled", false);
  m.attention_bias = m.output_bias = c.boolean_or("attention_bias", false);
  m.attention_gate = true;
  require_flag(c, "attn_output_gate", true);
  const std::string gate = c.string_or("output_gate_type", "swish");
  if (gate != "swish" && gate != "silu") unsupported(c, "output_gate_type", quote(gate), "swish");
  if (m.has_mixer(MixerKind::kGatedDelta)) {
    m.delta.key_heads = c.integer("linear_num_key_heads", 1, kMaxDim);
    m.delta.value_heads = c.integer("linear_num_value_heads", 1, kMaxDim);
    if (m.delta.value_heads % m.delta.key_heads != 0)
      c.fail_key("linear_num_value_heads",
                 str_cat("expected a multiple of linear_num_key_heads ", m.delta.key_heads, ", got ", m.delta.value_heads));
    m.delta.key_dim = c.integer("linear_key_head_dim", 1, 1 << 16);
    m.delta.value_dim = c.integer("linear_value_head_dim", 1, 1 << 16);
    m.delta.conv_width = c.integer("linear_conv_kernel_dim", 2, DeltaShape::kMaxConvWidth);
    for (const int64_t heads : {m.delta.key_heads, m.delta.value_heads})
      if (heads * std::max(m.delta.key_dim, m.delta.value_dim) > kMaxDim)
        c.fail_key("linear_num_value_heads", str_cat("expected at most ", kMaxDim, " columns of all heads"));
  }
  // Known keys without effect here: the state is float32 whatever the model's own code has, and no further tokens are predicted.
  for (const char* key : {"mamba_ssm_dtype", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"}) c.has(key);
  return m;
}

std::vector<TensorSpec> hybrid_specs(const ModelConfig& m, const Checkpoint& checkpoint, ModelWeights& weights) {
  WeightTable table(m, checkpoint, weights);
  add_vision_tower(table, checkpoint, weights);
  return decoder_specs(std::move(table), {{.shared_expert = "shared_expert."}});
}

const std::vector<std::string>& tensors_beside_text() {
  static const std::vector<std::string> names = {"mtp.*"};
  return names;
}

}  // namespace lynx_rt
