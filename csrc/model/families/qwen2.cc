// Qwen2 and Qwen2.5, dense. Keys and names: transformers' qwen2 configuration and the hub's checkpoints.
#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c);
  m.attention_bias = true;  // biases of q, k and v, for which there is no key
  read_switched_window(c, m, [](int64_t layer, int64_t max_layers) { return layer >= max_layers; });
  require_mlp_width(c, m);
  return m;
}

}  // namespace

const Family& qwen2_family() {
  static const Family family{"qwen2", read_config, usual_specs, {}};
  return family;
}

}  // namespace lynx_rt
