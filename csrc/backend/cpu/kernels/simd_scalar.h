// Sixteen float lanes in the compiler's generic vectors, for any CPU. kernels_inl.h is written over these types and functions.
// Everything here has internal linkage: each kernel file is compiled with its own flags, and the linker must never
// pick another file's copy.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>

#include "base/types.h"

namespace {

using F32x16 = float __attribute__((vector_size(64)));  // 16 lanes; split into what the target has

inline F32x16 fmadd(F32x16 a, F32x16 b, F32x16 c) { return a * b + c; }

inline F32x16 broadcast(float v) {
  F32x16 out;
  for (int i = 0; i < 16; ++i) out[i] = v;
  return out;
}

inline F32x16 load_f32(const void* p) {
  F32x16 v;
  std::memcpy(&v, p, 64);
  return v;
}

inline void store_f32(float* p, F32x16 v) { std::memcpy(p, &v, 64); }

inline F32x16 load_bf16(const void* p) {
  uint16_t in[16];
  std::memcpy(in, p, 32);
  uint32_t wide[16];
  for (int i = 0; i < 16; ++i) wide[i] = uint32_t(in[i]) << 16;
  F32x16 v;
  std::memcpy(&v, wide, 64);
  return v;
}

inline F32x16 load_f16(const void* p) {
  uint16_t in[16];
  std::memcpy(in, p, 32);
  F32x16 v;
  for (int i = 0; i < 16; ++i) v[i] = lynx_rt::f16_to_f32(in[i]);
  return v;
}

inline float fold(F32x16 v) {
  for (int i = 0; i < 8; ++i) v[i] += v[i + 8];
  for (int i = 0; i < 4; ++i) v[i] += v[i + 4];
  return (v[0] + v[2]) + (v[1] + v[3]);
}

// One register of the products (gemm_inl.h).
using Vec = float __attribute__((vector_size(16)));
constexpr int64_t kVec = 4;
constexpr int kTileRows = 2;  // rows of x: 8 accumulators of 16 SSE registers

inline Vec zero_vec() { return Vec{}; }
inline Vec broadcast_vec(const float* p) { return Vec{*p, *p, *p, *p}; }
inline void store_vec(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

// (a, b) = (their even lanes, their odd lanes), of the two as one row.
inline void split_lanes(Vec& a, Vec& b) {
  const Vec evens = {a[0], a[2], b[0], b[2]};
  b = Vec{a[1], a[3], b[1], b[3]};
  a = evens;
}

inline Vec fmadd(Vec a, Vec b, Vec c) { return a * b + c; }

inline Vec load_vec(const void* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// Half of 2 kVec weights at p: the even or the odd ones of bf16, the first or the second kVec of the other types.
template <lynx_rt::DType W, bool kSecond>
inline Vec load_half(const char* p) {
  if constexpr (W == lynx_rt::DType::kBF16) {
    using Bits = uint32_t __attribute__((vector_size(16)));
    Bits pairs;
    std::memcpy(&pairs, p, sizeof pairs);
    pairs = kSecond ? pairs & 0xffff0000u : pairs << 16;
    return std::bit_cast<Vec>(pairs);
  } else if constexpr (W == lynx_rt::DType::kF16) {
    uint16_t half[kVec];
    std::memcpy(half, p + kSecond * sizeof half, sizeof half);
    return Vec{lynx_rt::f16_to_f32(half[0]), lynx_rt::f16_to_f32(half[1]), lynx_rt::f16_to_f32(half[2]),
               lynx_rt::f16_to_f32(half[3])};
  } else {
    return load_vec(p + kSecond * kVec * 4);
  }
}

// out[i] (+)= the lanes of v[i], added in the order (0 + 1) + (2 + 3).
inline void put4(const Vec (&v)[4], float* out, bool accumulate) {
  for (int i = 0; i < 4; ++i) {
    const float sum = (v[i][0] + v[i][1]) + (v[i][2] + v[i][3]);
    out[i] = accumulate ? out[i] + sum : sum;
  }
}

inline void prefetch(const void*) {}
inline void prefetch_far(const void*) {}

}  // namespace
