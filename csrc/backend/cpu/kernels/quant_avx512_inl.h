// The common part of the quantised products of AVX-512 VNNI and AMX: float32 sums of 16 weight rows in one register.
#pragma once
#include <immintrin.h>

#include "backend/cpu/kernels/quant_inl.h"

namespace {

using QuantSums = float[Quant::kPanel];

// acc += (dots - zero * sum of q) * (scales * scale of row j of x); `scales` are the weights'.
template <int Bits>
inline void add_group(__m512i dots, const QuantRows& x, int64_t j, int64_t g, __m512 scales, float* acc) {
  const __m512i zero = _mm512_slli_epi32(_mm512_set1_epi32(x.sum(j, g)), Bits - 1);
  const __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(x.scale(j, g)));
  const __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(dots, zero)), scale);
  _mm512_store_ps(acc, _mm512_add_ps(_mm512_load_ps(acc), value));
}

inline void put_sums(const QuantSums* acc, int64_t m, int64_t rows, float* out, int64_t out_stride, bool accumulate) {
  const __mmask16 mask = rows >= Quant::kPanel ? __mmask16(0xffff) : __mmask16((1u << rows) - 1);
  for (int64_t j = 0; j < m; ++j) {
    __m512 v = _mm512_load_ps(acc[j]);
    if (accumulate) v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out + j * out_stride), v);
    _mm512_mask_storeu_ps(out + j * out_stride, mask, v);
  }
}

// Calls group(panel's group, rows of x, g, sums) for every panel and group: a group is multiplied with all rows of x before the next.
template <int Bits, class Group>
inline void for_groups(const void* weights, int64_t w_stride, int64_t n, const void* rows, int64_t x_stride, int64_t m, int64_t k,
                       float* out, int64_t out_stride, bool accumulate, Group group) {
  const QuantRows all{static_cast<const char*>(rows), x_stride, Quant::groups(k)};
  for (int64_t i = 0; i < n; i += Quant::kPanel)
    for (int64_t first = 0; first < m; first += kMaxRows) {
      const int64_t count = m - first < kMaxRows ? m - first : kMaxRows;
      const QuantRows x = all.from(first);
      alignas(64) QuantSums acc[kMaxRows];
      std::memset(acc, 0, size_t(count) * sizeof acc[0]);
      const char* w = static_cast<const char*>(weights) + i * w_stride;
      for (int64_t g = 0; g < x.groups; ++g, w += kGroupBytes<Bits>) group(w, x, count, g, acc);
      put_sums(acc, count, n - i, out + first * out_stride + i, out_stride, accumulate);
    }
}

}  // namespace
