// Arguments of Backend::gated_delta_rule().
#pragma once
#include <cstdint>

#include "base/tensor.h"

namespace lynx_rt {

// The states of one layer in the backend's memory: float32, 64-byte aligned. That of a slot begins at data + slot * stride; zeros are
// the state before a sequence's first token.
struct StateView {
  char* data = nullptr;
  int64_t stride = 0;  // bytes
};

// The place of one kind of columns in a row: those that belong to key head i begin at first + i * stride.
struct HeadColumns {
  int64_t first, stride;
};

// The sizes of a gated DeltaNet layer: kh key heads of dk columns, vh value heads of dv columns. Value head h belongs to key head
// h / (vh / kh), or h % kh where they are tiled.
struct DeltaShape {
  int64_t key_heads = 0;       // kh
  int64_t value_heads = 0;     // vh, a multiple of kh
  int64_t key_dim = 0;         // dk
  int64_t value_dim = 0;       // dv
  int64_t conv_width = 0;      // W: inputs that the convolution sees, 2 .. kMaxConvWidth
  bool tiled = false;          // the order of llama.cpp's files; the strides of v, z, b and a are not read then
  bool channel_decay = false;  // each row of S decays by itself (Kimi delta attention), not the whole matrix

  static constexpr int64_t kMaxConvWidth = 16;
  int64_t values_per_key() const { return value_heads / key_heads; }
  int64_t key_head_of(int64_t value_head) const { return tiled ? value_head % key_heads : value_head / values_per_key(); }
  // Returns the first of a value head's columns, `width` wide.
  int64_t column(const HeadColumns& c, int64_t value_head, int64_t width) const {
    const int64_t r = values_per_key();
    return tiled ? c.first + value_head * width : c.first + value_head / r * c.stride + value_head % r * width;
  }
  int64_t values() const { return value_heads * value_dim; }
  int64_t channels() const { return 2 * key_heads * key_dim + values(); }  // C of the convolution
  int64_t decays() const { return channel_decay ? key_dim : 1; }           // columns of a of one value head
  int64_t projected_columns() const { return channels() + values() + value_heads * (1 + decays()); }  // q, k, v, z, b and a
  int64_t matrix_size() const { return value_heads * key_dim * value_dim; }                           // elements of S
  int64_t state_size() const { return matrix_size() + (conv_width - 1) * channels(); }
};

struct GatedDeltaArgs {
  float* x;  // [T, x_stride] in; consumed
  int64_t x_stride;
  DeltaShape shape;
  HeadColumns q, k;           // dk columns of each key head
  HeadColumns v, z;           // dv columns of each of its value heads; tiled: of all value heads from first on, in their order
  HeadColumns b, a;           // of each of its value heads one column of b and decays() of a
  WeightView conv[3];         // of q, k and v: [W, columns of all heads] float32, oldest input first
  WeightView rate, dt_bias;   // [vh] and [vh * decays()] float32; rate = -exp(A_log)
  WeightView norm;            // [dv]
  float eps;                  // of the norm
  bool sigmoid_gate = false;  // the gate of the output is sigmoid(z) (Kimi delta attention), not silu(z)
};

}  // namespace lynx_rt
