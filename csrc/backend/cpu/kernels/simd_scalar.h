// Sixteen float lanes in the compiler's generic vectors, for any CPU. kernels_inl.h is written over these types and functions.
// Everything here has internal linkage: each kernel file is compiled with its own flags, and the linker must never
// pick another file's copy.
#pragma once
#include <cstdint>
#include <cstring>

#include "base/types.h"

namespace {

using F32x16 = float __attribute__((vector_size(64)));  // 16 lanes; split into what the target has

constexpr int kTileN = 2, kTileM = 2;  // rows of w and x per register tile: 4 accumulators of 4 SSE registers

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

inline void prefetch(const void*) {}

}  // namespace
