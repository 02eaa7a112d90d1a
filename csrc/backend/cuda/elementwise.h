// The ops that are a loop over rows. `rounded` outputs are rounded activations as packed.h describes them, with zeros behind the
// row's own values; null where nobody needs them.
#pragma once
#include <cstdint>

#include "backend/cuda/runtime/runtime.h"
#include "base/tensor.h"

namespace lynx_rt::cuda {

// out[t] = scale * row ids[t] of a packed [V, H] table as float32; [T, H].
void embed(const void* packed_table, const int32_t* ids, int num_rows, int hidden_size, float scale, float* out, Stream stream);

// What expert_ffn.h's down() left to do: x[t] += sum over slots j in order, those with id -1 skipped, of
// weights[t, j] * partial[t * k + j]. The sum starts at 0 and is added to x at the end.
struct Combine {
  const float* partial = nullptr;  // [T * k, H]; null = nothing to combine
  const int32_t* ids = nullptr;    // [T, k]
  const float* weights = nullptr;  // [T, k]; null = all 1
  int top_k = 0;
};
void combine(const Combine& combine, int num_rows, int hidden_size, float* x, Stream stream);

// Combines into x where there is something to combine; then out = x / sqrt(mean(x^2) + eps) * weight per row of H, float32 [T,
// H], and its bf16 to `rounded`. x is [T, H]; out may be x where nothing is combined, or null.
void rmsnorm(float* x, const Combine& combine, const float* weight, float eps, int num_rows, int hidden_size, float* out,
             uint16_t* rounded, Stream stream);

// The same with out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias; bias may be null.
void layernorm(float* x, const Combine& combine, const float* weight, const float* bias, float eps, int num_rows, int hidden_size,
               float* out, uint16_t* rounded, Stream stream);

// rounded[t] = bf16 of x[t], rows of num_columns with stride x_stride.
void round_rows(const float* x, int64_t x_stride, int num_rows, int num_columns, uint16_t* rounded, Stream stream);

// rounded[t, a] = bf16 of x[t, a * x_head .. + num_columns], each head a rounded row of its own: [T, A, padded_columns].
void round_heads(const float* x, int64_t x_stride, int64_t x_head, int num_rows, int num_heads, int num_columns,
                 uint16_t* rounded, Stream stream);

// out[i] = x[rows[i]], rows of H floats.
void gather_rows(const float* x, const int32_t* rows, int num_rows, int hidden_size, float* out, Stream stream);

// scores[t, e] = dot(x[t], weight[e]) + bias[e] in float32, in one fixed order; x [T, H], weight [E, H] row-major float32 or
// bfloat16, bias [E] or null.
void router(const float* x, const WeightView& weight, const float* bias, int num_rows, float* scores, Stream stream);

}  // namespace lynx_rt::cuda
