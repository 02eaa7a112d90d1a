// GLM-4.5, 4.6 and 4.5-Air (arXiv 2508.06471). Keys and names: transformers' glm4_moe configuration and the hub's checkpoints.
#include "model/families/common/deepseek.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c, {.rms_norm_eps = 1e-5, .partial_rotary = true, .partial_rotary_factor = 0.5});
  m.attention_bias = c.boolean_or("attention_bias", false);  // q, k, v alone
  if (c.boolean_or("use_qk_norm", false)) m.qk_norm = QkNorm::kHead;
  read_deepseek_experts(c, 1, 1.0, 8, m);
  read_sigmoid_router(c, m);
  return m;
}

}  // namespace

const Family& glm4_moe_family() {
  static const Family family{"glm4_moe", read_config, usual_specs, {}};
  return family;
}

}  // namespace lynx_rt
