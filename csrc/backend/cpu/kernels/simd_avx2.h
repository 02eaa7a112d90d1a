// Sixteen float lanes as two AVX registers. See simd_scalar.h.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "base/types.h"

namespace {

struct F32x16 {
  __m256 lo, hi;
  F32x16() = default;
  F32x16(__m256 l, __m256 h) : lo(l), hi(h) {}
};

inline F32x16 operator+(F32x16 a, F32x16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline F32x16 operator-(F32x16 a, F32x16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline F32x16 operator*(F32x16 a, F32x16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline F32x16 fmadd(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}

inline F32x16 broadcast(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }

inline F32x16 load_f32(const void* p) {
  const float* f = static_cast<const float*>(p);
  return {_mm256_loadu_ps(f), _mm256_loadu_ps(f + 8)};
}

inline void store_f32(float* p, F32x16 v) {
  _mm256_storeu_ps(p, v.lo);
  _mm256_storeu_ps(p + 8, v.hi);
}

inline F32x16 load_bf16(const void* p) {
  const __m128i* q = static_cast<const __m128i*>(p);
  __m256i lo = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(q)), 16);
  __m256i hi = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1)), 16);
  return {_mm256_castsi256_ps(lo), _mm256_castsi256_ps(hi)};
}

inline F32x16 load_f16(const void* p) {
  const __m128i* q = static_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}

// Sums four lanes in the order (0 + 2) + (1 + 3).
inline float fold4(__m128 v) {
  __m128 pairs = _mm_add_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_add_ss(pairs, _mm_shuffle_ps(pairs, pairs, 1)));
}

inline float fold(F32x16 v) {
  __m256 half = _mm256_add_ps(v.lo, v.hi);
  return fold4(_mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

// One register of the products (gemm_inl.h).
using Vec = __m256;
constexpr int64_t kVec = 8;
constexpr int kTileRows = 3;  // rows of x: 12 accumulators of 16 registers

inline Vec zero_vec() { return _mm256_setzero_ps(); }
inline Vec broadcast_vec(const float* p) { return _mm256_broadcast_ss(p); }
inline void store_vec(float* p, Vec v) { _mm256_storeu_ps(p, v); }

// (a, b) = (their even lanes, their odd lanes), of the two as one row.
inline void split_lanes(Vec& a, Vec& b) {
  const __m256d even = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88)), odd = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd));
  a = _mm256_castpd_ps(_mm256_permute4x64_pd(even, 0xd8));
  b = _mm256_castpd_ps(_mm256_permute4x64_pd(odd, 0xd8));
}

// A value that gcc 12 must have in a register before what follows. Otherwise it loads a register of x from memory for every product
// with it, or stores sums.
inline Vec now(Vec v) {
  asm("" : "+x"(v));
  return v;
}

inline Vec load_vec(const void* p) { return now(_mm256_loadu_ps(static_cast<const float*>(p))); }
inline Vec fmadd(Vec a, Vec b, Vec c) { return now(_mm256_fmadd_ps(a, b, c)); }

// The bits of the odd one of a pair of bf16, eight times. A tile of the products has no register left for them.
alignas(32) constexpr uint32_t kOdd[8] = {~0xffffu, ~0xffffu, ~0xffffu, ~0xffffu, ~0xffffu, ~0xffffu, ~0xffffu, ~0xffffu};

template <lynx_rt::DType W, bool kSecond>
inline Vec load_half(const char* p) {
  if constexpr (W == lynx_rt::DType::kBF16) {
    __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    if (kSecond)
      asm("vpand %1, %0, %0" : "+x"(pairs) : "m"(kOdd));
    else
      pairs = _mm256_slli_epi32(pairs, 16);
    return _mm256_castsi256_ps(pairs);
  } else if constexpr (W == lynx_rt::DType::kF16) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + kSecond));
  } else {
    return load_vec(p + kSecond * kVec * 4);
  }
}

inline Vec add_pairs(Vec a, Vec b) { return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd)); }

// out[i] (+)= the lanes of v[i], added in the order ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)).
inline void put4(const Vec (&v)[4], float* out, bool accumulate) {
  const __m256 quads = add_pairs(add_pairs(v[0], v[1]), add_pairs(v[2], v[3]));
  const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(quads), _mm256_extractf128_ps(quads, 1));
  _mm_storeu_ps(out, accumulate ? _mm_add_ps(_mm_loadu_ps(out), sums) : sums);
}

// Into the first-level cache, and the second. Always inlined, since gcc 12 takes a function that only prefetches for one without effects,
// and drops some calls of it.
[[gnu::always_inline]] inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
[[gnu::always_inline]] inline void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace
