// Qwen3.5-MoE and Qwen3.6-MoE with their vision tower. The text model is qwen3_5_moe_text.
#include "model/families/common/qwen_hybrid.h"
#include "model/families/common/qwen_vision.h"

namespace lynx_rt {

const Family& qwen3_5_moe_text_family();

namespace {

ModelConfig read_config(const ConfigReader& c) { return read_vision_language(c, qwen3_5_moe_text_family().read_config, {}); }

}  // namespace

const Family& qwen3_5_moe_family() {
  static const Family family{"qwen3_5_moe", read_config, hybrid_specs, tensors_beside_text()};
  return family;
}

}  // namespace lynx_rt
