// Llama, and the many models that use its architecture. Keys and names: transformers' llama configuration and the hub's
// checkpoints.
#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c);
  m.rope.interleaved = c.boolean_or("rope_interleave", false);  // of GGUF files (gguf_config.cc)
  m.attention_bias = m.output_bias = c.boolean_or("attention_bias", false);
  m.mlp_bias = c.boolean_or("mlp_bias", false);
  require_mlp_width(c, m);
  return m;
}

}  // namespace

const Family& llama_family() {
  static const Family family{"llama", read_config, usual_specs, {}};
  return family;
}

}  // namespace lynx_rt
