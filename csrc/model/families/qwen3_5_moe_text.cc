// Qwen3.5-MoE and Qwen3.6-MoE, the text model (in a checkpoint of its own, or as a part of qwen3_5_moe). Keys and names: transformers'
// qwen3_5_moe_text configuration and the hub's checkpoints.
#include "model/families/common/qwen_hybrid.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_hybrid(c);
  read_experts(c, {.default_top_k = 8}, m);
  c.has("norm_topk_prob");  // has no effect: the weights are always normalised
  m.router.norm_topk = true;
  m.shared_expert_width = c.integer("shared_expert_intermediate_size", 1, kMaxDim);
  m.shared_expert_gate = true;
  for (LayerConfig& l : m.layers) l.moe = true;
  return m;
}

}  // namespace

const Family& qwen3_5_moe_text_family() {
  static const Family family{"qwen3_5_moe_text", read_config, hybrid_specs, tensors_beside_text()};
  return family;
}

}  // namespace lynx_rt
