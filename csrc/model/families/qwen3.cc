// Qwen3, dense. Keys and names: transformers' qwen3 configuration and the hub's checkpoints.
#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c);
  m.qk_norm = QkNorm::kHead;
  m.attention_bias = m.output_bias = c.boolean_or("attention_bias", false);
  read_switched_window(c, m, [](int64_t layer, int64_t max_layers) { return layer >= max_layers; });
  require_mlp_width(c, m);
  return m;
}

}  // namespace

const Family& qwen3_family() {
  static const Family family{"qwen3", read_config, dense_specs, {}};
  return family;
}

}  // namespace lynx_rt
