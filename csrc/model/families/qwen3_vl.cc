// Qwen3-VL without experts. The text model alone is loaded and run. Keys and names: transformers' qwen3_vl configuration and the hub's
// checkpoints.
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

}  // namespace

const Family& qwen3_vl_family() {
  static const Family family{"qwen3_vl", read_config, usual_specs, {"model.visual.*"}};
  return family;
}

}  // namespace lynx_rt
