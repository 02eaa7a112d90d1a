#include "model/next_router.h"

#include "model/norm.h"

namespace lynx_rt {

NextRouter::NextRouter(Backend& backend, const ModelConfig& config, const ModelWeights& weights, int64_t max_rows)
    : backend_(backend),
      config_(config),
      normed_(backend, max_rows, config.hidden_size, "next_router"),
      scores_(backend, checked_mul(max_rows, config.num_experts, "next_router"), "next_router") {
  for (int64_t l = 0; l < config.num_layers; ++l)
    if (config.layers[size_t(l)].moe) layers_.push_back(&weights.layers[size_t(l)]);
}

float* NextRouter::score(int64_t moe_layer, const float* x, int64_t num_rows) {
  const LayerWeights& w = *layers_[size_t(moe_layer + 1)];
  const float* rows = x;
  if (!config_.output_norms) {
    norm(backend_, config_, x, config_.sandwich_norms ? w.sandwich.router_in : w.post_attention_norm, w.post_attention_norm_bias,
         num_rows, normed_);
    rows = normed_.f32();
  }
  backend_.router(rows, w.router, w.router_bias, num_rows, scores_.get(), config_.router_multiplier);
  return scores_.get();
}

}  // namespace lynx_rt
