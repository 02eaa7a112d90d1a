// FlexOlmo (arXiv 2507.07024). Keys and names: transformers' flex_olmo configuration and the hub's checkpoints.
#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c, {.rope_theta = 500000});
  m.output_norms = true;
  m.qk_norm = QkNorm::kWidth;
  m.attention_bias = m.output_bias = c.boolean_or("attention_bias", false);
  read_experts(c, {.width = {"intermediate_size"}, .default_top_k = 5}, m);
  m.router.norm_topk = c.boolean_or("norm_topk_prob", false);
  for (LayerConfig& layer : m.layers) layer.moe = true;
  return m;
}

}  // namespace

const Family& flex_olmo_family() {
  static const Family family{"flex_olmo", read_config, usual_specs, {}};
  return family;
}

}  // namespace lynx_rt
