#include "backend/cpu/kernels/simd_avx512.h"
// The simd header must come first: the kernels are written over its types.
#include "backend/cpu/kernels/kernels_inl.h"
#include "backend/cpu/kernels/pairs_avx512_inl.h"

// bf16 x bf16 dot products with vdpbf16ps: 32 elements a step, lane l takes elements 2l and 2l + 1; the tail is masked to zeros. The
// order depends on K alone.
namespace {

// out[j * out_stride + i] (+)= fold(acc[i][j])
template <int NR, int MR>
inline void put_tile(const F32x16 (&acc)[NR][MR], float* out, int64_t out_stride, bool accumulate) {
  for (int j = 0; j < MR; ++j)
    for (int i = 0; i < NR; ++i) {
      const float v = fold(acc[i][j]);
      float* to = out + j * out_stride + i;
      *to = accumulate ? *to + v : v;
    }
}

// put_tile() of 4 weight rows, their folds at once.
template <int MR>
inline void put_tile(const F32x16 (&acc)[4][MR], float* out, int64_t out_stride, bool accumulate) {
#pragma GCC unroll 8
  for (int j = 0; j < MR; ++j) {
    __m128 quads[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(acc[i][j]), _mm512_extractf32x8_ps(acc[i][j], 1));
      quads[i] = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    }
    __m128 pairs[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i)
      pairs[i] =
          _mm_add_ps(_mm_shuffle_ps(quads[2 * i], quads[2 * i + 1], 0x44), _mm_shuffle_ps(quads[2 * i], quads[2 * i + 1], 0xee));
    const __m128 sums = _mm_add_ps(_mm_shuffle_ps(pairs[0], pairs[1], 0x88), _mm_shuffle_ps(pairs[0], pairs[1], 0xdd));
    float* to = out + j * out_stride;
    _mm_storeu_ps(to, accumulate ? _mm_add_ps(_mm_loadu_ps(to), sums) : sums);
  }
}

// acc[i][j] += 32 columns of NR weight rows times those of MR rows of x, the columns beyond `mask` left out where it is given.
template <int NR, int MR, class... Mask>
[[gnu::always_inline]] inline void multiply_columns(const char* w, int64_t w_stride, const char* x, int64_t x_stride,
                                                    F32x16 (&acc)[NR][MR], Mask... mask) {
  const auto load = [&](const char* p) {
    if constexpr (sizeof...(mask) > 0)
      return (__m512bh)_mm512_maskz_loadu_epi16(mask..., p);
    else
      return (__m512bh)_mm512_loadu_si512(p);
  };
  // The pragmas are for gcc 12: it would keep the sums in memory.
  __m512bh xv[MR];
#pragma GCC unroll 8
  for (int j = 0; j < MR; ++j) xv[j] = load(x + j * x_stride);
#pragma GCC unroll 4
  for (int i = 0; i < NR; ++i) {
    const __m512bh wv = load(w + i * w_stride);
#pragma GCC unroll 8
    for (int j = 0; j < MR; ++j) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], wv, xv[j]);
  }
}

struct Bf16Tile {
  static constexpr int64_t kColumns = 32, kBlockBytes = 64;
  static constexpr int kMostRows = 6;  // 24 accumulators of 32 registers

  template <int NR, int MR, int kLines>
  static void run(const char* w, int64_t w_stride, const char* x, int64_t x_stride, int64_t k, Ahead ahead, float* out,
                  int64_t out_stride, bool accumulate) {
    F32x16 acc[NR][MR];
    for (int i = 0; i < NR; ++i)
      for (int j = 0; j < MR; ++j) acc[i][j] = _mm512_setzero_ps();
    const char* const end = w + k / kColumns * kBlockBytes;
    for (; w < end; w += kBlockBytes, x += kBlockBytes, ahead.at += ahead.bytes) {
      fetch<kLines>(ahead.at, ahead.apart);
      multiply_columns(w, w_stride, x, x_stride, acc);
    }
    if (const int64_t rest = k % kColumns) multiply_columns(w, w_stride, x, x_stride, acc, __mmask32((1u << rest) - 1));
    put_tile(acc, out, out_stride, accumulate);
  }
};

}  // namespace

namespace lynx_rt::cpu {
const Kernels kAvx512Bf16Kernels = make_kernels(Isa::kAvx512Bf16, gemm<Bf16Tile>, weighted_pairs);
}
