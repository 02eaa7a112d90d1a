// Sixteen float lanes as four NEON registers. See simd_scalar.h.
#pragma once
#include <arm_neon.h>

#include <cstdint>

#include "base/types.h"

namespace {

struct F32x16 {
  float32x4_t a, b, c, d;
};

inline F32x16 operator+(F32x16 v, F32x16 w) {
  return {vaddq_f32(v.a, w.a), vaddq_f32(v.b, w.b), vaddq_f32(v.c, w.c), vaddq_f32(v.d, w.d)};
}
inline F32x16 operator-(F32x16 v, F32x16 w) {
  return {vsubq_f32(v.a, w.a), vsubq_f32(v.b, w.b), vsubq_f32(v.c, w.c), vsubq_f32(v.d, w.d)};
}
inline F32x16 operator*(F32x16 v, F32x16 w) {
  return {vmulq_f32(v.a, w.a), vmulq_f32(v.b, w.b), vmulq_f32(v.c, w.c), vmulq_f32(v.d, w.d)};
}
inline F32x16 fmadd(F32x16 v, F32x16 w, F32x16 add) {
  return {vfmaq_f32(add.a, v.a, w.a), vfmaq_f32(add.b, v.b, w.b), vfmaq_f32(add.c, v.c, w.c), vfmaq_f32(add.d, v.d, w.d)};
}

inline F32x16 broadcast(float v) {
  const float32x4_t all = vdupq_n_f32(v);
  return {all, all, all, all};
}

inline F32x16 load_f32(const void* p) {
  const float* f = static_cast<const float*>(p);
  return {vld1q_f32(f), vld1q_f32(f + 4), vld1q_f32(f + 8), vld1q_f32(f + 12)};
}

inline void store_f32(float* p, F32x16 v) {
  vst1q_f32(p, v.a);
  vst1q_f32(p + 4, v.b);
  vst1q_f32(p + 8, v.c);
  vst1q_f32(p + 12, v.d);
}

inline F32x16 load_bf16(const void* p) {
  const uint16_t* q = static_cast<const uint16_t*>(p);
  const uint16x8_t lo = vld1q_u16(q), hi = vld1q_u16(q + 8), zero = vdupq_n_u16(0);
  return {vreinterpretq_f32_u16(vzip1q_u16(zero, lo)), vreinterpretq_f32_u16(vzip2q_u16(zero, lo)),
          vreinterpretq_f32_u16(vzip1q_u16(zero, hi)), vreinterpretq_f32_u16(vzip2q_u16(zero, hi))};
}

inline F32x16 load_f16(const void* p) {
  const uint16_t* q = static_cast<const uint16_t*>(p);
  const float16x8_t lo = vreinterpretq_f16_u16(vld1q_u16(q)), hi = vreinterpretq_f16_u16(vld1q_u16(q + 8));
  return {vcvt_f32_f16(vget_low_f16(lo)), vcvt_high_f32_f16(lo), vcvt_f32_f16(vget_low_f16(hi)), vcvt_high_f32_f16(hi)};
}

// Sums sixteen lanes to four.
inline float32x4_t fold_to_four(F32x16 v) { return vaddq_f32(vaddq_f32(v.a, v.c), vaddq_f32(v.b, v.d)); }

inline float fold(F32x16 v) {
  const float32x4_t four = fold_to_four(v);
  return vaddv_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)));  // (0 + 2) + (1 + 3)
}

// One register of the products (gemm_inl.h).
using Vec = float32x4_t;
constexpr int64_t kVec = 4;
constexpr int kTileRows = 5;  // rows of x: 20 accumulators of 32 registers, 5 of x, weights and a mask

inline Vec zero_vec() { return vdupq_n_f32(0); }
inline Vec broadcast_vec(const float* p) { return vld1q_dup_f32(p); }
inline void store_vec(float* p, Vec v) { vst1q_f32(p, v); }

// (a, b) = (their even lanes, their odd lanes), of the two as one row.
inline void split_lanes(Vec& a, Vec& b) {
  const Vec evens = vuzp1q_f32(a, b);
  b = vuzp2q_f32(a, b);
  a = evens;
}

inline Vec load_vec(const void* p) { return vld1q_f32(static_cast<const float*>(p)); }
inline Vec fmadd(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }

template <lynx_rt::DType W, bool kSecond>
inline Vec load_half(const char* p) {
  if constexpr (W == lynx_rt::DType::kBF16) {
    const uint32x4_t pairs = vld1q_u32(reinterpret_cast<const uint32_t*>(p));
    return vreinterpretq_f32_u32(kSecond ? vandq_u32(pairs, vdupq_n_u32(0xffff0000)) : vshlq_n_u32(pairs, 16));
  } else if constexpr (W == lynx_rt::DType::kF16) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p) + kSecond * kVec)));
  } else {
    return load_vec(p + kSecond * kVec * 4);
  }
}

// out[i] (+)= the lanes of v[i], added in the order (0 + 1) + (2 + 3).
inline void put4(const Vec (&v)[4], float* out, bool accumulate) {
  const Vec sums = vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3]));
  vst1q_f32(out, accumulate ? vaddq_f32(vld1q_f32(out), sums) : sums);
}

// Into the first-level cache, and the second. Always inlined, since gcc 12 takes a function that only prefetches for one without effects,
// and drops some calls of it.
[[gnu::always_inline]] inline void prefetch(const void* p) { __builtin_prefetch(p); }
[[gnu::always_inline]] inline void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace
