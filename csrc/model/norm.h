// The norm of a model's residual stream.
#pragma once
#include <utility>

#include "backend/device_array.h"
#include "model/model_config.h"

namespace lynx_rt {

// Adds `pending` to x, [T, H], then writes the rows that ModelConfig::norm makes of x to `out`. bias: of a layer norm, may be empty.
inline void norm(Backend& backend, const ModelConfig& config, const float* x, const WeightView& weight, const WeightView& bias,
                 int64_t num_rows, Activations& out, PendingSum pending = {}) {
  if (config.norm == NormKind::kLayer)
    backend.layernorm(x, weight, bias, config.rms_norm_eps, num_rows, out, std::move(pending));
  else
    backend.rmsnorm(x, weight, config.rms_norm_eps, num_rows, out, std::move(pending));
}

}  // namespace lynx_rt
