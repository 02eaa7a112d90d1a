// DeepSeek-V2 and V2-Lite (arXiv 2405.04434). Keys and names: transformers' deepseek_v2 configuration and the hub's checkpoints.
#include "checkpoint/json.h"
#include "model/families/common/deepseek.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c, {.head_dim = "qk_rope_head_dim"});
  read_latent_attention(c, m);
  m.rope.interleaved = true;
  m.mlp_bias = c.boolean_or("mlp_bias", false);
  read_deepseek_experts(c, 0, 1.0, 0, m);
  require_word(c, "scoring_func", "softmax");
  // With this key set, the models' own code normalises instead of scaling, and transformers ignores it; no checkpoint sets it.
  require_flag(c, "norm_topk_prob", false);
  m.router.norm_topk = false;
  const std::string method = c.string_or("topk_method", "greedy");
  if (method == "group_limited_greedy") {
    read_router_groups(c, m);
  } else if (method != "greedy") {
    unsupported(c, "topk_method", quote(method), "greedy, group_limited_greedy");
  }
  return m;
}

}  // namespace

const Family& deepseek_v2_family() {
  static const Family family{"deepseek_v2", read_config, usual_specs, {}};
  return family;
}

}  // namespace lynx_rt
