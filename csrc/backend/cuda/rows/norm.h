// Norms, and the sum over a row's experts that they add first. `rounded` is rounded activations (gemm/packed.h), with zeros after the
// row's own values, or null.
#pragma once
#include <cstdint>

#include "backend/cuda/runtime/runtime.h"
#include "backend/pending_sum.h"

namespace lynx_rt::cuda {

// x += the sum over a row's experts, of which gemm/expert_ffn.h's down() computed the terms.
void combine(const ExpertSum& sum, int num_rows, int hidden_size, float* x, Stream stream);

// out[i] = weights[i] * expert_scale[ids[i]] for `count` pairs, 0 where the id is -1; weights may be null: 1.
void scale_weights(const float* weights, const int32_t* ids, const float* expert_scale, int64_t count, float* out, Stream stream);

// Adds the sum to x where there is one (partial is not null); then out = x / sqrt(mean(x^2) + eps) * weight per row of H, and rounded
// = bf16 of it. x, out [T, H]; out may be null, or x where there is no sum.
void rmsnorm(float* x, const ExpertSum& sum, const float* weight, float eps, int num_rows, int hidden_size, float* out,
             uint16_t* rounded, Stream stream);

// Adds the sum to y where there is one; then x = (x + y / sqrt(mean(y^2) + eps) * weight) * scale[0] per row of H, without the x in the
// brackets unless `accumulate`. y, x [T, H] do not overlap; scale may be null: 1.
void add_rmsnorm(float* y, const ExpertSum& sum, const float* weight, float eps, int num_rows, int hidden_size, bool accumulate,
                 const float* scale, float* x, Stream stream);

// Does what rmsnorm() does, with out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias; bias may be null.
void layernorm(float* x, const ExpertSum& sum, const float* weight, const float* bias, float eps, int num_rows, int hidden_size,
               float* out, uint16_t* rounded, Stream stream);

}  // namespace lynx_rt::cuda
