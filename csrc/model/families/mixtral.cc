// Mixtral. Keys and names: transformers' mixtral configuration and the hub's checkpoints.
// Its router always normalises; the name block_sparse_moe is mlp in what transformers 5 holds in memory.
#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c, {.rms_norm_eps = 1e-5, .rope_theta = 1e6});
  read_uniform_window(c, m);
  read_experts(c, {.width = {"intermediate_size"}, .default_top_k = 2}, m);
  for (LayerConfig& layer : m.layers) layer.moe = true;
  return m;
}

std::vector<TensorSpec> specs(const ModelConfig& m, const Checkpoint& checkpoint, ModelWeights& weights) {
  WeightTable table(m, checkpoint, weights);
  table.add_model();
  for (int64_t l = 0; l < m.num_layers; ++l) {
    const std::string name = table.layer_name(l);
    const std::string moe = name + (table.has(name + "mlp.gate.weight") ? "mlp." : "block_sparse_moe.");
    table.add_norms(l);
    table.add_attention(l);
    table.add_router(moe + "gate.weight", l);
    table.add_experts(moe + "experts.", l, {"w1", "w3", "w2"});
  }
  return table.take();
}

}  // namespace

const Family& mixtral_family() {
  static const Family family{"mixtral", read_config, specs, {}};
  return family;
}

}  // namespace lynx_rt
