// Qwen3-VL without experts, with its vision tower. Keys and names: transformers' qwen3_vl configuration and the hub's checkpoints.
#include "model/families/common/qwen_vision.h"

namespace lynx_rt {

namespace {

ModelConfig read_text(const ConfigReader& c) {
  c.integer("head_dim", 1, 1 << 16);  // 128 in transformers where it is absent, not H / A: it must be there
  ModelConfig m = read_qwen3_vl_text(c);
  require_mlp_width(c, m);
  return m;
}

ModelConfig read_config(const ConfigReader& c) {
  return read_vision_language(c, read_text, {.tied = false, .deepstack = {8, 16, 24}});
}

std::vector<TensorSpec> specs(const ModelConfig& m, const Checkpoint& checkpoint, ModelWeights& weights) {
  WeightTable table(m, checkpoint, weights);
  add_vision_tower(table, checkpoint, weights);
  return decoder_specs(std::move(table), {MoeNames{}});
}

}  // namespace

const Family& qwen3_vl_family() {
  static const Family family{"qwen3_vl", read_config, specs, {}};
  return family;
}

}  // namespace lynx_rt
