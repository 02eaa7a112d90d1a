// Qwen3-Next. Keys and names: transformers' qwen3_next configuration and the hub's checkpoints.
#include "model/families/common/qwen_hybrid.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_hybrid(c);
  m.delta_by_head = true;
  read_experts(c, {.default_top_k = 10}, m);
  m.router.norm_topk = c.boolean_or("norm_topk_prob", true);
  m.shared_expert_width = c.integer("shared_expert_intermediate_size", 1, kMaxDim);
  m.shared_expert_gate = true;
  read_sparse_layers(c, m);
  return m;
}

}  // namespace

const Family& qwen3_next_family() {
  static const Family family{"qwen3_next", read_config, hybrid_specs, tensors_beside_text()};
  return family;
}

}  // namespace lynx_rt
