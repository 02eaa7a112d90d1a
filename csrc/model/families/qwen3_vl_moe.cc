// Qwen3-VL with experts and its vision tower. Keys and names: transformers' qwen3_vl_moe configuration and the hub's checkpoints.
#include "model/families/common/qwen_vision.h"

namespace lynx_rt {

namespace {

ModelConfig read_text(const ConfigReader& c) {
  ModelConfig m = read_qwen3_vl_text(c);
  read_experts(c, {.default_top_k = 4}, m);
  c.has("norm_topk_prob");  // has no effect: the weights are always normalised
  m.router.norm_topk = true;
  read_sparse_layers(c, m);
  return m;
}

ModelConfig read_config(const ConfigReader& c) {
  return read_vision_language(c, read_text, {.tied = false, .deepstack = {8, 16, 24}});
}

std::vector<TensorSpec> specs(const ModelConfig& m, const Checkpoint& checkpoint, ModelWeights& weights) {
  const MoeNames names{.add_experts = [](WeightTable& table, const std::string& prefix, int64_t l) {
    const int64_t e = table.m.num_experts, width = 2 * table.m.moe_intermediate_size, h = table.m.hidden_size;
    const std::string gate_up = prefix + "gate_up_proj", down = prefix + "down_proj";
    // The hub's tensors are transposed, those of transformers 5 are not, nor is a shape that fits both.
    if (width != h && table.has(gate_up, {e, h, width})) return table.add_transposed_experts(gate_up, down, l);
    table.add_experts(prefix, l);
  }};
  WeightTable table(m, checkpoint, weights);
  add_vision_tower(table, checkpoint, weights);
  return decoder_specs(std::move(table), {names});
}

}  // namespace

const Family& qwen3_vl_moe_family() {
  static const Family family{"qwen3_vl_moe", read_config, specs, {}};
  return family;
}

}  // namespace lynx_rt
