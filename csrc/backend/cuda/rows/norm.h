// Norms, and the sum over a row's experts that they add first. `rounded` outputs are rounded activations as gemm/packed.h describes
// them, with zeros behind the row's own values; null where nobody needs them.
#pragma once
#include <cstdint>

#include "backend/cuda/runtime/runtime.h"
#include "backend/pending_sum.h"

namespace lynx_rt::cuda {

// x += what expert_ffn.h's down() left to do.
void combine(const ExpertSum& sum, int num_rows, int hidden_size, float* x, Stream stream);

// Adds the sum to x where there is one (partial is not null); then out = x / sqrt(mean(x^2) + eps) * weight per row of H, float32 [T,
// H], and its bf16 to `rounded`. x is [T, H]; out may be x where there is none, or null.
void rmsnorm(float* x, const ExpertSum& sum, const float* weight, float eps, int num_rows, int hidden_size, float* out,
             uint16_t* rounded, Stream stream);

// As rmsnorm(), with out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias; bias may be null.
void layernorm(float* x, const ExpertSum& sum, const float* weight, const float* bias, float eps, int num_rows, int hidden_size,
               float* out, uint16_t* rounded, Stream stream);

}  // namespace lynx_rt::cuda
