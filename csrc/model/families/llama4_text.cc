// Llama 4, the text model (in a checkpoint of its own, or as a part of llama4). Keys and names: transformers' llama4_text
// configuration and the hub's checkpoints.
#include <algorithm>

#include "checkpoint/json.h"
#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

namespace {

void read_layers(const ConfigReader& c, ModelConfig& m) {
  const int64_t chunk = c.integer_or("attention_chunk_size", 0, 1, 1 << 28);
  const int64_t interval = c.integer_or("no_rope_layer_interval", 4, 1, kMaxLayers);
  const std::vector<int64_t> rope = c.integers_or("no_rope_layers", {}, 0, 1);  // 1 = the layer has rope, despite the name
  const std::vector<std::string> types = c.strings_or("layer_types", {});
  const int64_t moe_step = c.integer_or("interleave_moe_layer_step", 1, 1, kMaxLayers);
  const std::vector<int64_t> moe = c.integers_or("moe_layers", {}, 0, m.num_layers - 1);
  if (!rope.empty() && int64_t(rope.size()) < m.num_layers)
    c.fail_key("no_rope_layers", str_cat("expected one for each of ", m.num_layers, " layers, got ", rope.size()));
  if (!types.empty() && int64_t(types.size()) != m.num_layers)
    c.fail_key("layer_types", str_cat("expected one for each of ", m.num_layers, " layers, got ", types.size()));
  for (size_t l = 0; l < m.layers.size(); ++l) {
    LayerConfig& layer = m.layers[l];
    layer.rope = rope.empty() ? (int64_t(l) + 1) % interval != 0 : rope[l] == 1;
    const std::string type = !types.empty() ? types[l] : layer.rope ? "chunked_attention" : "full_attention";
    if (type != "chunked_attention" && type != "full_attention")
      unsupported(c, "layer_types", quote(type), "chunked_attention, full_attention");
    if (type == "chunked_attention") layer.chunk = chunk;
    if (type == "chunked_attention" && chunk == 0)
      c.fail_key("attention_chunk_size", "missing, but a layer has chunked_attention");
    layer.moe =
        c.has("moe_layers") ? std::find(moe.begin(), moe.end(), int64_t(l)) != moe.end() : (int64_t(l) + 1) % moe_step == 0;
  }
}

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c, {.rms_norm_eps = 1e-5, .rope_theta = 5e5});
  m.rope.interleaved = true;
  m.attention_bias = m.output_bias = c.boolean_or("attention_bias", false);
  if (c.boolean_or("use_qk_norm", true)) m.qk_norm = QkNorm::kUnitAfterRope;  // in the layers with rope
  const double floor = c.number_or("floor_scale", 8192, 1, 1e12), scale = c.number_or("attn_scale", 0.1, 0, 1e6);
  if (c.boolean_or("attn_temperature_tuning", true)) {  // in the layers without rope
    m.temperature_floor = float(floor);
    m.temperature_scale = float(scale);
  }
  read_experts(c, {{"num_local_experts"}, {"num_experts_per_tok"}, {"intermediate_size"}, 1}, m);
  read_layers(c, m);
  m.shared_expert_width = m.moe_intermediate_size;
  m.intermediate_size = c.integer_or("intermediate_size_mlp", 0, 1, kMaxDim);
  for (const LayerConfig& l : m.layers)
    if (!l.moe) c.integer("intermediate_size_mlp", 1, kMaxDim);
  m.router.kind = RouterKind::kSigmoid;
  m.router.norm_topk = false;
  m.ffn.scale_input = true;
  return m;
}

std::vector<TensorSpec> specs(const ModelConfig& m, const Checkpoint& checkpoint, ModelWeights& weights) {
  const MoeNames names{.block = "feed_forward.",
                       .router = "router.weight",
                       .shared_expert = "shared_expert.",
                       .add_experts = [](WeightTable& table, const std::string& prefix, int64_t l) {
                         if (table.has(prefix + "gate_up_proj"))
                           return table.add_transposed_experts(prefix + "gate_up_proj", prefix + "down_proj", l);
                         table.add_experts(prefix, l);  // the layout that quantisation tools write
                       }};
  return decoder_specs({m, checkpoint, weights}, {names});
}

}  // namespace

const Family& llama4_text_family() {
  static const Family family{"llama4_text", read_config, specs, {}};
  return family;
}

}  // namespace lynx_rt
