// GLM-5: DeepSeek-V3.2 with other defaults, and with layers that share the choice of their tokens. Keys and names: transformers'
// glm_moe_dsa configuration and the hub's checkpoints.
#include "model/families/common/deepseek.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c, {.rms_norm_eps = 1e-5, .head_dim = "qk_rope_head_dim"});
  read_latent_attention(c, m);
  m.rope.interleaved = true;
  read_deepseek_experts(c, 3, 2.5, 8, m);
  read_mlp_layer_types(c, m);
  read_sigmoid_router(c, m);
  read_indexer(c, m);
  return m;
}

}  // namespace

const Family& glm_moe_dsa_family() {
  static const Family family{"glm_moe_dsa", read_config, usual_specs, indexer_tensors()};
  return family;
}

}  // namespace lynx_rt
