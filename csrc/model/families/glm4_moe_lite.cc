// GLM-4.7-Flash. Keys and names: transformers' glm4_moe_lite configuration and the hub's checkpoints.
#include "model/families/common/deepseek.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c, {.rms_norm_eps = 1e-5, .head_dim = "qk_rope_head_dim"});
  read_latent_attention(c, m);
  m.rope.interleaved = c.boolean_or("rope_interleave", true);
  read_deepseek_experts(c, 1, 1.8, 4, m);
  read_mlp_layer_types(c, m);
  read_sigmoid_router(c, m);
  return m;
}

}  // namespace

const Family& glm4_moe_lite_family() {
  static const Family family{"glm4_moe_lite", read_config, usual_specs, {}};
  return family;
}

}  // namespace lynx_rt
