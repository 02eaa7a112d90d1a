// K-EXAONE. Keys and names: transformers' exaone_moe configuration and the hub's checkpoints.
#include <algorithm>

#include "model/families/common/deepseek.h"

namespace lynx_rt {

namespace {

// Layers without a window have no rope. (transformers' code has rope everywhere in a model without windows, but its config refuses one.)
void read_layers(const ConfigReader& c, ModelConfig& m) {
  const std::vector<std::string> keys = c.keys();
  if (!c.has("sliding_window") && std::find(keys.begin(), keys.end(), "sliding_window") != keys.end())
    c.fail_key("sliding_window", "expected a window, got null");
  read_window(c, m, 4096);
  const int64_t pattern = c.integer_or("sliding_window_pattern", 4, 1, kMaxLayers);
  for (int64_t l = 0; l < m.num_layers; ++l) {
    LayerConfig& layer = m.layers[size_t(l)];
    if (!c.has("layer_types") && (l + 1) % pattern == 0) layer.window = 0;
    layer.rope = layer.window > 0;
  }
}

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c, {.rms_norm_eps = 1e-5});
  m.qk_norm = QkNorm::kHead;
  read_layers(c, m);
  read_experts(c, {.count = {"num_experts"}, .default_top_k = 8}, m);
  m.shared_expert_width = c.integer_or("num_shared_experts", 1, 1, 1 << 10) * m.moe_intermediate_size;
  m.router.scale = float(c.number_or("routed_scaling_factor", 2.5, 0.0, 1e6));
  read_sigmoid_router(c, m);
  const int64_t first_dense = c.integer_or("first_k_dense_replace", 1, 0, kMaxLayers);
  if (!read_mlp_layer_types(c, m)) {
    for (int64_t l = first_dense; l < m.num_layers; ++l) m.layers[size_t(l)].moe = true;
    require_mlp_width(c, m);
  }
  return m;
}

std::vector<TensorSpec> specs(const ModelConfig& m, const Checkpoint& checkpoint, ModelWeights& weights) {
  WeightTable table(m, checkpoint, weights);
  MoeNames names;  // the hub has the bias beside the gate
  for (int64_t l = 0; l < m.num_layers; ++l)
    if (table.has(table.layer_name(l) + "mlp.e_score_correction_bias")) names.choice_bias = "e_score_correction_bias";
  return decoder_specs(std::move(table), {names});
}

}  // namespace

const Family& exaone_moe_family() {
  static const Family family{"exaone_moe", read_config, specs, {"mtp.*"}};
  return family;
}

}  // namespace lynx_rt
