// dots.llm1 (arXiv 2506.05767). Keys and names: transformers' dots1 configuration and the hub's checkpoints.
#include <algorithm>

#include "model/families/common/deepseek.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c);
  m.attention_bias = m.output_bias = c.boolean_or("attention_bias", false);
  m.qk_norm = QkNorm::kHead;
  read_window(c, m, 4096);
  const int64_t max_window_layers = c.integer_or("max_window_layers", 62, 0, kMaxLayers);
  if (!c.has("layer_types"))
    for (int64_t l = 0; l < std::min(max_window_layers, m.num_layers); ++l) m.layers[size_t(l)].window = 0;
  read_deepseek_experts(c, 0, 1.0, 0, m);
  read_sigmoid_router(c, m);
  m.router.norm_topk = c.boolean_or("norm_topk_prob", false);
  return m;
}

}  // namespace

const Family& dots1_family() {
  static const Family family{"dots1", read_config, usual_specs, {}};
  return family;
}

}  // namespace lynx_rt
