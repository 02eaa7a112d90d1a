// Sixteen float lanes as one AVX-512 register. See simd_scalar.h.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "base/types.h"

namespace {

using F32x16 = __m512;

constexpr int kTileN = 4, kTileM = 4;  // 16 accumulators of 32 registers

inline F32x16 fmadd(F32x16 a, F32x16 b, F32x16 c) { return _mm512_fmadd_ps(a, b, c); }
inline F32x16 broadcast(float v) { return _mm512_set1_ps(v); }
inline F32x16 load_f32(const void* p) { return _mm512_loadu_ps(p); }

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

// out[j * out_stride + i] (+)= fold(acc[i][j]), all sixteen folds at once.
inline void put_tile(const F32x16 (&acc)[4][4], float* out, int64_t out_stride, bool accumulate) {
  F32x16 rows[4];  // four lanes of acc[i][0], .., acc[i][3]
  for (int i = 0; i < 4; ++i) {
    F32x16 half[2];
    for (int j = 0; j < 2; ++j)
      half[j] = _mm512_add_ps(_mm512_shuffle_f32x4(acc[i][2 * j], acc[i][2 * j + 1], 0x44),
                              _mm512_shuffle_f32x4(acc[i][2 * j], acc[i][2 * j + 1], 0xee));
    rows[i] = _mm512_add_ps(_mm512_shuffle_f32x4(half[0], half[1], 0x88), _mm512_shuffle_f32x4(half[0], half[1], 0xdd));
  }
  F32x16 pairs[2];
  for (int i = 0; i < 2; ++i)
    pairs[i] = _mm512_add_ps(_mm512_shuffle_ps(rows[2 * i], rows[2 * i + 1], 0x44),
                             _mm512_shuffle_ps(rows[2 * i], rows[2 * i + 1], 0xee));
  const F32x16 all = _mm512_add_ps(_mm512_shuffle_ps(pairs[0], pairs[1], 0x88), _mm512_shuffle_ps(pairs[0], pairs[1], 0xdd));
  const __m128 columns[4] = {_mm512_castps512_ps128(all), _mm512_extractf32x4_ps(all, 1), _mm512_extractf32x4_ps(all, 2),
                             _mm512_extractf32x4_ps(all, 3)};
  for (int j = 0; j < 4; ++j) {
    float* to = out + j * out_stride;
    _mm_storeu_ps(to, accumulate ? _mm_add_ps(_mm_loadu_ps(to), columns[j]) : columns[j]);
  }
}

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

}  // namespace
