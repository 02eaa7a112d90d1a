// Granite MoE with a shared expert. Keys and names: transformers' granitemoeshared configuration and the hub's checkpoints.
#include "model/families/common/config_keys.h"
#include "model/family.h"

namespace lynx_rt {

const Family& granitemoe_family();

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = granitemoe_family().read_config(c);
  m.shared_expert_width = c.integer_or("shared_intermediate_size", 0, 0, kMaxDim);
  return m;
}

}  // namespace

const Family& granitemoeshared_family() {
  static const Family family{"granitemoeshared", read_config, granitemoe_family().specs, {}};
  return family;
}

}  // namespace lynx_rt
