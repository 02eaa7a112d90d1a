// Mixtral. Keys and names: transformers' mixtral configuration and the hub's checkpoints. Its router always normalises; in
// memory, transformers 5 has mlp for block_sparse_moe.
#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c, {.rms_norm_eps = 1e-5, .rope_theta = 1e6});
  m.rope.interleaved = c.boolean_or("rope_interleave", false);  // of GGUF files (gguf_config.cc)
  read_uniform_window(c, m);
  read_experts(c, {.width = {"intermediate_size"}, .default_top_k = 2}, m);
  for (LayerConfig& layer : m.layers) layer.moe = true;
  return m;
}

std::vector<TensorSpec> specs(const ModelConfig& m, const Checkpoint& checkpoint, ModelWeights& weights) {
  const MoeNames released{.block = "block_sparse_moe.", .expert = {"w1", "w3", "w2"}}, renamed{.expert = {"w1", "w3", "w2"}};
  return decoder_specs({m, checkpoint, weights}, {released, renamed});
}

}  // namespace

const Family& mixtral_family() {
  static const Family family{"mixtral", read_config, specs, {}};
  return family;
}

}  // namespace lynx_rt
