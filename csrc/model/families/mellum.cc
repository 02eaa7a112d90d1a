// Mellum 2. Keys and names: transformers' mellum configuration and the hub's checkpoints.
#include <algorithm>

#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c, {.rope_by_layer_type = true});
  c.integer("head_dim", 2, 1 << 16);  // 128 in transformers where it is absent, not H / A: it must be there
  m.qk_norm = QkNorm::kHead;
  m.attention_bias = m.output_bias = c.boolean_or("attention_bias", false);
  if (c.has("layer_types"))
    read_window(c, m, 1024);
  else
    c.has("sliding_window");  // all layers are full
  read_experts(c, {.default_top_k = 8}, m);
  m.router.norm_topk = c.boolean_or("norm_topk_prob", true);
  if (!read_mlp_layer_types(c, m))
    for (LayerConfig& layer : m.layers) layer.moe = true;
  RopeConfig full;
  full.theta = 500000;
  m.rope = read_layer_rope(c, "full_attention", m.head_dim, full, 1);
  if (std::any_of(m.layers.begin(), m.layers.end(), [](const LayerConfig& l) { return l.window > 0; }))
    m.window_rope = read_layer_rope(c, "sliding_attention", m.head_dim, {}, 1);
  for (const char* of_mtp : {"mtp_layer_types", "mtp_mlp_layer_types"}) c.has(of_mtp);
  return m;
}

}  // namespace

const Family& mellum_family() {
  static const Family family{"mellum", read_config, usual_specs, {"mtp.*"}};
  return family;
}

}  // namespace lynx_rt
