// DeepSeek-V3 and R1 (arXiv 2412.19437), Moonlight. Keys and names: transformers' deepseek_v3 configuration and the hub's
// checkpoints.
#include "model/families/common/deepseek.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c, {.head_dim = "qk_rope_head_dim"});
  read_latent_attention(c, m);
  m.rope.interleaved = c.boolean_or("rope_interleave", true);
  read_deepseek_experts(c, 3, 2.5, 8, m);
  read_sigmoid_router(c, m);
  return m;
}

}  // namespace

const Family& deepseek_v3_family() {
  static const Family family{"deepseek_v3", read_config, usual_specs, {}};
  return family;
}

}  // namespace lynx_rt
