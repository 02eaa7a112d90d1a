#include "backend/cpu/kernels/simd_avx512.h"
// The simd header must come first: the kernels are written over its types.
#include "backend/cpu/kernels/kernels_inl.h"

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

// put_tile() of 4 x 4, all sixteen folds at once.
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

template <int NR, int MR>
inline void bf16_tile(const char* w, int64_t w_stride, const char* x, int64_t x_stride, int64_t k, float* out, int64_t out_stride,
                      bool accumulate, bool first_pass) {
  __m512 acc[NR][MR];
  for (int i = 0; i < NR; ++i)
    for (int j = 0; j < MR; ++j) acc[i][j] = _mm512_setzero_ps();
  int64_t p = 0;
  for (; p + 32 <= k; p += 32) {
    __m512bh xv[MR];
    for (int j = 0; j < MR; ++j) xv[j] = (__m512bh)_mm512_loadu_si512(x + j * x_stride + p * 2);
    for (int i = 0; i < NR; ++i) {
      const char* wp = w + i * w_stride + p * 2;
      if (first_pass) prefetch(wp + NR * w_stride);
      __m512bh wv = (__m512bh)_mm512_loadu_si512(wp);
      for (int j = 0; j < MR; ++j) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], wv, xv[j]);
    }
  }
  if (p < k) {
    __mmask32 mask = (__mmask32(1) << (k - p)) - 1;
    __m512bh xv[MR];
    for (int j = 0; j < MR; ++j) xv[j] = (__m512bh)_mm512_maskz_loadu_epi16(mask, x + j * x_stride + p * 2);
    for (int i = 0; i < NR; ++i) {
      __m512bh wv = (__m512bh)_mm512_maskz_loadu_epi16(mask, w + i * w_stride + p * 2);
      for (int j = 0; j < MR; ++j) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], wv, xv[j]);
    }
  }
  put_tile(acc, out, out_stride, accumulate);
}

// Multiplies NR weight rows with MR rows of x at once. Each loaded weight vector serves all rows of x, so weights are loaded once.
template <int NR, int MR>
void bf16_weights(const char* w, int64_t w_stride, int64_t n, const char* x, int64_t x_stride, int64_t k, float* out,
                  int64_t out_stride, bool accumulate, bool first_pass) {
  int64_t i = 0;
  for (; i + NR <= n; i += NR)
    bf16_tile<NR, MR>(w + i * w_stride, w_stride, x, x_stride, k, out + i, out_stride, accumulate, first_pass);
  for (; i < n; ++i) bf16_tile<1, MR>(w + i * w_stride, w_stride, x, x_stride, k, out + i, out_stride, accumulate, first_pass);
}

// Weight rows of a tile with M rows of x: at most 16 accumulators.
template <int M>
constexpr int weight_rows() {
  return M <= 4 ? 4 : M <= 8 ? 2 : 1;
}

void gemm_bf16(const void* weights, int64_t w_stride, int64_t n, const void* rows, int64_t x_stride, int64_t m, int64_t k,
               float* out, int64_t out_stride, bool accumulate, const void*) {
  constexpr int64_t kRows = 16;
  const char* w = static_cast<const char*>(weights);
  for (int64_t j = 0; j < m; j += kRows)
    pass_of<kRows>(m - j < kRows ? m - j : kRows, [&](auto r) {
      const char* x = static_cast<const char*>(rows) + j * x_stride;
      constexpr int kM = r.number, kN = weight_rows<kM>();
      bf16_weights<kN, kM>(w, w_stride, n, x, x_stride, k, out + j * out_stride, out_stride, accumulate, j == 0);
    });
}

}  // namespace

namespace lynx_rt::cpu {
const Kernels kAvx512Bf16Kernels = make_kernels(Isa::kAvx512Bf16, gemm_bf16);
}
