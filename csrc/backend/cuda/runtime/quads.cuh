// Rows in quads. A quad is four neighbouring values that one thread reads and writes, as 16 bytes where all rows are so aligned, else
// one by one. A row's last quad may be short.
#pragma once
#include <cstdint>

#include "backend/cuda/runtime/ptx.cuh"

namespace lynx_rt::cuda {

struct Quad {
  float v[4];
};

// Loads the first `count` of the four values at p; the others are 0. `aligned`: p is 16-byte aligned.
__device__ __forceinline__ Quad load_quad(const float* p, int count, bool aligned) {
  Quad q = {};
  if (aligned && count >= 4) {
    const Words4 words = load_16(p);
    q = {bits_float(words.x), bits_float(words.y), bits_float(words.z), bits_float(words.w)};
  } else {
    LYNX_UNROLL
    for (int i = 0; i < 4; ++i)
      if (i < count) q.v[i] = p[i];
  }
  return q;
}

__device__ __forceinline__ void store_quad(float* p, const Quad& q, int count, bool aligned) {
  if (aligned && count >= 4) {
    *reinterpret_cast<Words4*>(p) = {float_bits(q.v[0]), float_bits(q.v[1]), float_bits(q.v[2]), float_bits(q.v[3])};
  } else {
    LYNX_UNROLL
    for (int i = 0; i < 4; ++i)
      if (i < count) p[i] = q.v[i];
  }
}

// Stores a quad of rounded activations: always four values, zeros from `count` on; p is 8-byte aligned.
__device__ __forceinline__ void store_rounded(uint16_t* p, const Quad& q, int count) {
  const auto value = [&](int i) { return i < count ? q.v[i] : 0.0f; };
  *reinterpret_cast<Words2*>(p) = {to_bf16x2(value(0), value(1)), to_bf16x2(value(2), value(3))};
}

}  // namespace lynx_rt::cuda
