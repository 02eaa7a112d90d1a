// Kernels::weighted_pairs() with vdpbf16ps, for the files that are compiled for it.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "backend/cpu/kernels/passes.h"

namespace {

constexpr int kPairRows = 12;  // 24 accumulators of 32 registers

template <int MJ>
void pair_rows(const char* v, int64_t pairs, const float* const* p, float* const* acc) {
  __m512 sum[MJ][2];
#pragma GCC unroll 12
  for (int j = 0; j < MJ; ++j)
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) sum[j][h] = _mm512_loadu_ps(acc[j] + 16 * h);
  for (int64_t t = 0; t < pairs; ++t, v += 128) {
    const __m512bh first = (__m512bh)_mm512_loadu_si512(v), second = (__m512bh)_mm512_loadu_si512(v + 64);
#pragma GCC unroll 12
    for (int j = 0; j < MJ; ++j) {
      int32_t pair;
      std::memcpy(&pair, p[j] + t, 4);
      const __m512bh weights = (__m512bh)_mm512_set1_epi32(pair);
      sum[j][0] = _mm512_dpbf16_ps(sum[j][0], first, weights);
      sum[j][1] = _mm512_dpbf16_ps(sum[j][1], second, weights);
    }
  }
#pragma GCC unroll 12
  for (int j = 0; j < MJ; ++j)
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) _mm512_storeu_ps(acc[j] + 16 * h, sum[j][h]);
}

void weighted_pairs(const void* v, int64_t pairs, const float* const* p, int64_t m, float* const* acc) {
  in_passes<kPairRows>(m,
                       [&](auto rows, int64_t j) { pair_rows<rows.number>(static_cast<const char*>(v), pairs, p + j, acc + j); });
}

}  // namespace
