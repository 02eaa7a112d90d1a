// Qwen3-MoE. Keys and names: transformers' qwen3_moe configuration and the hub's checkpoints.
#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c);
  m.qk_norm = QkNorm::kHead;
  m.attention_bias = m.output_bias = c.boolean_or("attention_bias", false);
  read_switched_window(c, m, [](int64_t, int64_t) { return true; });
  read_experts(c, {.default_top_k = 8}, m);
  c.has("shared_expert_intermediate_size");  // unused key of Qwen2-MoE; no expert is shared
  m.router.norm_topk = c.boolean_or("norm_topk_prob", false);
  read_sparse_layers(c, m);
  return m;
}

}  // namespace

const Family& qwen3_moe_family() {
  static const Family family{"qwen3_moe", read_config, usual_specs, {}};
  return family;
}

}  // namespace lynx_rt
