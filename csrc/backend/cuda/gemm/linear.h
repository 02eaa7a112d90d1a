// Matrix products with packed weights (packed.h), each part in its own form: bf16 operands, float32 sums. An output element is summed in one fixed order
// that depends on K alone, so its bits do not depend on the number of rows, on the other rows, or on the tile size.
#pragma once
#include <cstdint>

#include "backend/cuda/gemm/packed.h"
#include "backend/cuda/runtime/runtime.h"

namespace lynx_rt::cuda {

struct LinearArgs {
  static constexpr int kMaxParts = 4;
  struct Part {
    const void* weight;  // packed [rows, K]
    const float* bias;   // [rows] or null
    int rows;
    int out_column;
    PackedForm form = {};
  };
  const uint16_t* x;  // [T, padded_columns(K)] rounded activations
  int num_rows;       // T
  int num_columns;    // K
  Part parts[kMaxParts];
  int num_parts;
  float* out;  // [T, out_stride]; out[t, out_column + n] (+)= scale * (dot(x[t], weight[n]) + bias[n])
  int64_t out_stride;
  bool accumulate;
  float scale = 1;
  const float* row_gate = nullptr;  // [T] or null: row t is also scaled by sigmoid(row_gate[t])
};
void linear(const LinearArgs& args, int num_sms, Stream stream);

// One product for each of A heads: out[t, a * out_head + n] = dot(x[t, a], row n of head a's matrix).
struct HeadLinearArgs {
  const uint16_t* x;    // [T, A, padded_columns(K)] rounded activations, as round_heads() makes them
  const void* weights;  // packed [N, K] of each head, one after the other
  int num_rows;         // T
  int num_heads;        // A
  int weight_rows;      // N
  int num_columns;      // K
  float* out;
  int64_t out_stride, out_head;
};
void head_linear(const HeadLinearArgs& args, int num_sms, Stream stream);

}  // namespace lynx_rt::cuda
