// Qwen3.5 without experts, the text model (in a checkpoint of its own, or as a part of qwen3_5). Keys and names: transformers'
// qwen3_5_text configuration and the hub's checkpoints.
#include "model/families/common/qwen_hybrid.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_hybrid(c);
  require_mlp_width(c, m);
  return m;
}

}  // namespace

const Family& qwen3_5_text_family() {
  static const Family family{"qwen3_5_text", read_config, hybrid_specs, tensors_beside_text()};
  return family;
}

}  // namespace lynx_rt
