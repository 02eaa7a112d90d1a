// Mistral. Keys and names: transformers' mistral configuration and the hub's checkpoints.
#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c);
  read_uniform_window(c, m, 4096);
  require_mlp_width(c, m);
  return m;
}

}  // namespace

const Family& mistral_family() {
  static const Family family{"mistral", read_config, dense_specs, {}};
  return family;
}

}  // namespace lynx_rt
