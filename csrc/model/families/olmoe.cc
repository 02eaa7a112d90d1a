// OLMoE. Keys and names: transformers' olmoe configuration and the hub's checkpoints.
#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c, {.rms_norm_eps = 1e-5});
  m.qk_norm = QkNorm::kWidth;
  m.attention_bias = m.output_bias = c.boolean_or("attention_bias", false);
  m.clip_qkv = float(c.number_or("clip_qkv", 0, 1e-6, 1e9));
  read_experts(c, {.width = {"intermediate_size"}, .default_top_k = 8}, m);
  m.router.norm_topk = c.boolean_or("norm_topk_prob", false);
  for (LayerConfig& layer : m.layers) layer.moe = true;
  return m;
}

}  // namespace

const Family& olmoe_family() {
  static const Family family{"olmoe", read_config, usual_specs, {}};
  return family;
}

}  // namespace lynx_rt
