// The next MoE layer's router, asked early about the rows of this layer.
#pragma once
#include <cstdint>
#include <vector>

#include "backend/device_array.h"
#include "model/model_weights.h"

namespace lynx_rt {

// Scores the experts of the next MoE layer on the residual stream after this layer's attention. Needs no training, and finds about as
// much as trained predictors do. Source: arXiv 2312.17238 (speculative loading). Works in host memory.
class NextRouter {
 public:
  NextRouter(Backend& backend, const ModelConfig& config, const ModelWeights& weights, int64_t max_rows);

  int64_t num_layers() const { return int64_t(layers_.size()); }  // MoE layers
  // Returns the router logits [T, E] of layer `moe_layer` + 1, which has to exist. x: [T, H] residual stream after the attention of
  // `moe_layer`. They are overwritten by the next call.
  float* score(int64_t moe_layer, const float* x, int64_t num_rows);
  // Returns the bias that layer `moe_layer` adds to logits when it chooses, [E], or null.
  const float* choice_bias(int64_t moe_layer) const {
    return static_cast<const float*>(layers_[size_t(moe_layer)]->choice_bias.data);
  }

 private:
  Backend& backend_;
  const ModelConfig& config_;
  std::vector<const LayerWeights*> layers_;  // MoE layers
  Activations normed_;
  DeviceArray<float> scores_;  // [max_rows, E]
};

}  // namespace lynx_rt
