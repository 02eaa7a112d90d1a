// Sixteen float lanes as one AVX-512 register. See simd_scalar.h.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "base/types.h"

namespace {

using F32x16 = __m512;

inline F32x16 fmadd(F32x16 a, F32x16 b, F32x16 c) { return _mm512_fmadd_ps(a, b, c); }
inline F32x16 broadcast(float v) { return _mm512_set1_ps(v); }
inline F32x16 load_f32(const void* p) { return _mm512_loadu_ps(p); }

inline void store_f32(float* p, F32x16 v) { _mm512_storeu_ps(p, v); }

inline F32x16 load_bf16(const void* p) {
  __m256i h = _mm256_loadu_si256(static_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

inline F32x16 load_f16(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }

// Sums four lanes in the order (0 + 2) + (1 + 3).
inline float fold4(__m128 v) {
  __m128 pairs = _mm_add_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_add_ss(pairs, _mm_shuffle_ps(pairs, pairs, 1)));
}

inline float fold(F32x16 v) {
  __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  return fold4(_mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

// One register of the products (gemm_inl.h).
using Vec = __m512;
constexpr int64_t kVec = 16;
constexpr int kTileRows = 6;  // rows of x: 24 accumulators of 32 registers

inline Vec zero_vec() { return _mm512_setzero_ps(); }
inline Vec broadcast_vec(const float* p) { return _mm512_set1_ps(*p); }
inline void store_vec(float* p, Vec v) { _mm512_storeu_ps(p, v); }

// (a, b) = (their even lanes, their odd lanes), of the two as one row.
inline void split_lanes(Vec& a, Vec& b) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const Vec evens = _mm512_permutex2var_ps(a, even, b);
  b = _mm512_permutex2var_ps(a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b);
  a = evens;
}

inline Vec load_vec(const void* p) { return _mm512_loadu_ps(p); }

template <lynx_rt::DType W, bool kSecond>
inline Vec load_half(const char* p) {
  if constexpr (W == lynx_rt::DType::kBF16) {
    const __m512i pairs = _mm512_loadu_si512(p);
    const __m512i bits = kSecond ? _mm512_and_si512(pairs, _mm512_set1_epi32(int(0xffff0000))) : _mm512_slli_epi32(pairs, 16);
    return _mm512_castsi512_ps(bits);
  } else if constexpr (W == lynx_rt::DType::kF16) {
    return load_f16(p + kSecond * kVec * 2);
  } else {
    return load_vec(p + kSecond * kVec * 4);
  }
}

// out[i] (+)= the lanes of v[i]: 8 to 15 are added to 0 to 7, which are added in the order ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)).
inline void put4(const Vec (&v)[4], float* out, bool accumulate) {
  __m256 half[4];
  for (int i = 0; i < 4; ++i) half[i] = _mm256_add_ps(_mm512_castps512_ps256(v[i]), _mm512_extractf32x8_ps(v[i], 1));
  const __m256 quads = _mm256_hadd_ps(_mm256_hadd_ps(half[0], half[1]), _mm256_hadd_ps(half[2], half[3]));
  const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(quads), _mm256_extractf128_ps(quads, 1));
  _mm_storeu_ps(out, accumulate ? _mm_add_ps(_mm_loadu_ps(out), sums) : sums);
}

// Into the first-level cache, and the second. Always inlined, since gcc 12 takes a function that only prefetches for one without effects,
// and drops some calls of it.
[[gnu::always_inline]] inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
[[gnu::always_inline]] inline void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace
