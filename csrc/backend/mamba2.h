// Arguments of Backend::mamba2() and Backend::short_conv().
#pragma once
#include <cstdint>

#include "base/tensor.h"

namespace lynx_rt {

// The sizes of a Mamba2 layer: A heads of P columns, g groups of heads that share B and C of N columns.
struct Mamba2Shape {
  int64_t heads = 0;       // A, a multiple of g
  int64_t head_dim = 0;    // P
  int64_t groups = 0;      // g
  int64_t state_dim = 0;   // N
  int64_t conv_width = 0;  // W: inputs that the convolution sees, 2 .. DeltaShape::kMaxConvWidth

  int64_t values() const { return heads * head_dim; }
  int64_t channels() const { return values() + 2 * groups * state_dim; }  // C of the convolution
  int64_t projected_columns() const { return values() + channels() + heads; }
  int64_t row_columns() const { return projected_columns() + heads; }   // with room for a decay of each head
  int64_t matrix_size() const { return heads * state_dim * head_dim; }  // elements of S
  int64_t state_size() const { return matrix_size() + (conv_width - 1) * channels(); }
};

struct Mamba2Args {
  float* x;  // [T, x_stride] in: z [A P], x [A P], B [g N], C [g N], dt [A], and room for A values more; consumed
  int64_t x_stride;
  Mamba2Shape shape;
  WeightView conv;                 // [W, C] float32, oldest input first; channels: x, B, C
  WeightView conv_bias;            // [C] float32 or empty
  WeightView rate, dt_bias, skip;  // [A] float32; rate = -exp(A_log); skip = D
  WeightView norm;                 // [A P]
  float eps;                       // of the norm
  float min_dt, max_dt;            // bounds of softplus(dt + dt_bias)
};

struct ShortConvArgs {
  float* x;  // [T, x_stride] in: b [H], c [H], x [H]; consumed
  int64_t x_stride;
  int64_t channels;  // H
  WeightView conv;   // [W, H] float32, oldest input first; W in 2 .. DeltaShape::kMaxConvWidth
  WeightView bias;   // [H] float32 or empty

  int64_t state_size() const { return (conv.rows - 1) * channels; }
};

}  // namespace lynx_rt
