// DeepSeek-V3.2: DeepSeek-V3 with sparse attention, which is dense up to index_topk tokens. Keys and names: transformers' deepseek_v32
// configuration and the hub's checkpoints.
#include "model/families/common/deepseek.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c, {.head_dim = "qk_rope_head_dim"});
  read_latent_attention(c, m);
  m.rope.interleaved = true;
  read_deepseek_experts(c, 3, 2.5, 8, m);
  read_mlp_layer_types(c, m);
  read_sigmoid_router(c, m);
  read_indexer(c, m);
  return m;
}

}  // namespace

const Family& deepseek_v32_family() {
  static const Family family{"deepseek_v32", read_config, usual_specs, indexer_tensors()};
  return family;
}

}  // namespace lynx_rt
