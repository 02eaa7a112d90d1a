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

constexpr int kTileN = 2, kTileM = 2;  // 4 accumulators of 2 registers, of 16

inline F32x16 operator+(F32x16 a, F32x16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline F32x16 operator-(F32x16 a, F32x16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline F32x16 fmadd(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}

inline F32x16 broadcast(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }

inline F32x16 load_f32(const void* p) {
  const float* f = static_cast<const float*>(p);
  return {_mm256_loadu_ps(f), _mm256_loadu_ps(f + 8)};
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

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

}  // namespace
