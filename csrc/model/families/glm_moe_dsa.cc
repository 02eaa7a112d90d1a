// GLM-5: DeepSeek-V3.2 with other defaults, and with layers that share the choice of their tokens. Keys and names: transformers'
// glm_moe_dsa configuration and the hub's checkpoints.
#include "model/families/common/deepseek.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) { return read_sparse_deepseek(c, 1e-5); }

}  // namespace

const Family& glm_moe_dsa_family() {
  static const Family family{"glm_moe_dsa", read_config, usual_specs, indexer_tensors()};
  return family;
}

}  // namespace lynx_rt
