// Solar Open. Keys and names: transformers' solar_open configuration and the hub's checkpoints.
#include "model/families/common/deepseek.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c, {.rms_norm_eps = 1e-5, .rope_theta = 1e6});
  c.integer("head_dim", 2, 1 << 16);  // 128 in transformers where it is absent, not H / A: it must be there
  m.attention_bias = c.boolean_or("attention_bias", false);  // q, k, v alone
  read_deepseek_experts(c, 0, 1.0, 8, m);
  if (!c.has("n_shared_experts")) m.shared_expert_width = m.moe_intermediate_size;
  read_sigmoid_router(c, m);
  return m;
}

}  // namespace

const Family& solar_open_family() {
  static const Family family{"solar_open", read_config, usual_specs, {}};
  return family;
}

}  // namespace lynx_rt
