// Values to signed bytes with a common scale, in plain operations, so that all instruction sets agree. quant.h defines both.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>

#include "backend/cpu/kernels/quant.h"

namespace {

using lynx_rt::cpu::Quant;

constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it, and taking it off, rounds to an integer, to even at ties

// The scale of n values and its inverse, with which the largest becomes `most` or -most. quant.h defines the sign, and the treatment
// of zeros and non-finite values.
struct QuantScale {
  float scale, inverse;

  QuantScale(const float* v, int64_t n, float most, bool lowest_is_largest) {
    uint32_t bits = 0;  // largest absolute value as bits, in which infinity and NaN are above every number
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t b = std::bit_cast<uint32_t>(v[i]) & 0x7fffffffu;
      bits = b > bits ? b : bits;
    }
    const float amax = std::bit_cast<float>(bits);
    const bool finite = bits < 0x7f800000u, zero = finite && amax < 1e-30f;
    scale = !finite ? std::bit_cast<float>(0x7fc00000u) : zero ? 0.0f : amax / most;
    inverse = finite && !zero ? most / amax : 0.0f;
    if (!lowest_is_largest) return;
    int negative = 0;
    for (int64_t i = 0; i < n; ++i) negative |= v[i] == -amax;
    if (!negative) scale = -scale, inverse = -inverse;
  }
  int32_t steps(float v) const { return scale == scale ? int32_t((v * inverse + kRound) - kRound) : 0; }
};

// Makes the bytes of a group of x from its n values, of which there may be fewer than Quant::kGroup. Returns the scale.
inline float quantize_x(const float* v, int64_t n, int8_t (&q)[Quant::kGroup]) {
  alignas(64) float padded[Quant::kGroup];
  if (n < Quant::kGroup) {
    std::memset(padded, 0, sizeof padded);
    std::memcpy(padded, v, size_t(4 * n));
    v = padded;
  }
  const QuantScale scale(v, Quant::kGroup, 127.0f, false);
  std::memset(q, 0, sizeof q);
  // The lowest byte of a float32 near kRound is that of the integer which it holds.
  if (scale.scale == scale.scale)
    for (int64_t i = 0; i < Quant::kGroup; ++i) q[i] = int8_t(std::bit_cast<uint32_t>(v[i] * scale.inverse + kRound));
  return scale.scale;
}

}  // namespace
