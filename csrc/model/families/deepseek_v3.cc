// DeepSeek-V3 and R1 (arXiv 2412.19437), Moonlight. Keys and names: transformers' deepseek_v3 configuration and the hub's
// checkpoints.
#include "model/families/common/deepseek.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c, {.head_dim = "qk_rope_head_dim"});
  read_latent_attention(c, m);
  m.rope.interleaved = c.boolean_or("rope_interleave", true);
  read_deepseek_experts(c, 3, 2.5, 8, m);
  read_sigmoid_router(c, m);
  return m;
}

std::vector<TensorSpec> specs(const ModelConfig& m, const Checkpoint& checkpoint, ModelWeights& weights) {
  WeightTable table(m, checkpoint, weights);
  table.add_model();
  for (int64_t l = 0; l < m.num_layers; ++l) {
    table.add_norms(l);
    add_latent_attention(table, l);
    add_deepseek_mlp(table, l);
  }
  return table.take();
}

}  // namespace

const Family& deepseek_v3_family() {
  static const Family family{"deepseek_v3", read_config, specs, {}};
  return family;
}

}  // namespace lynx_rt
