// Functions that the kernels share, over the sixteen-lane type F32x16 of the simd_*.h header that the including file chose.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>

#include "backend/cpu/kernels/gemm_inl.h"
#include "base/types.h"

namespace {

constexpr int kLanes = 16;

template <DType D>
inline F32x16 load(const void* p) {
  if constexpr (D == DType::kF32)
    return load_f32(p);
  else if constexpr (D == DType::kBF16)
    return load_bf16(p);
  else
    return load_f16(p);
}

template <DType D>
inline F32x16 load_partial(const void* p, int64_t count) {
  alignas(64) unsigned char buf[64] = {};
  std::memcpy(buf, p, size_t(count * kSize<D>));
  return load<D>(buf);
}

inline F32x16 zero() { return F32x16{}; }

// exp(x) with a relative error below 2^-22: x = n ln 2 + r, |r| <= ln 2 / 2, degree-6 polynomial in r, scaled by 2^n.
// Coefficients: the Taylor series up to r^7, whose first omitted term is below 2^-24 there. Plain operations only.
inline float exp_f32(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // adding 1.5 * 2^23 rounds to an integer
  float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;   // ln 2 in two parts: n * first part is exact
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * std::bit_cast<float>(uint32_t(int32_t(n) + 127) << 23);
}

}  // namespace
