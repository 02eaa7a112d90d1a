// The common part of the quantised products of AVX-512 VNNI and AMX: float32 sums of 16 weight rows in one register.
#pragma once
#include <immintrin.h>

#include "backend/cpu/kernels/quant_inl.h"

namespace {

// acc += (dots - zero * sum of q) * (scales * scale of row j of x); `scales` are the weights'.
template <int Bits>
inline void add_group(__m512i dots, const QuantRows& x, int64_t j, int64_t g, __m512 scales, float* acc) {
  const __m512i zero = _mm512_slli_epi32(_mm512_set1_epi32(x.sum(j, g)), Bits - 1);
  const __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(x.scale(j, g)));
  const __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(dots, zero)), scale);
  _mm512_store_ps(acc, _mm512_add_ps(_mm512_load_ps(acc), value));
}

}  // namespace
