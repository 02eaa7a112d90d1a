// Rounds rows for a product: rounded activations (gemm/packed.h), with zeros after the row's own values.
#pragma once
#include <cstdint>

#include "backend/cuda/runtime/runtime.h"

namespace lynx_rt::cuda {

// rounded[t] = bf16 of x[t], rows of num_columns with stride x_stride.
void round_rows(const float* x, int64_t x_stride, int num_rows, int num_columns, uint16_t* rounded, Stream stream);

// rounded[t, a] = bf16 of x[t, a * x_head .. + num_columns]. Each head is a rounded row of its own: [T, A, padded_columns].
void round_heads(const float* x, int64_t x_stride, int64_t x_head, int num_rows, int num_heads, int num_columns,
                 uint16_t* rounded, Stream stream);

}  // namespace lynx_rt::cuda
