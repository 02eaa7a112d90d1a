// Quantised products with AVX2: bytes are widened to 16 bits, and vpmaddwd sums pairs of columns.
#include <immintrin.h>

#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/quant_inl.h"

namespace {

// sums[j][r] of one group for MR rows of x.
template <int Bits, int MR>
inline void dot_group(const uint8_t* w, QuantRows x, int64_t g, __m256i (&sums)[MR][2]) {
  __m256i acc[MR][4];  // each for 4 weight rows, two sums per row
  for (int j = 0; j < MR; ++j)
    for (int i = 0; i < 4; ++i) acc[j][i] = _mm256_setzero_si256();
  const __m128i low = _mm_set1_epi8(15);
  for (int64_t q = 0; q < Quant::kGroup / 4; ++q) {
    const uint8_t* line = w + (Bits == 8 ? q : q / 2) * Quant::kLine;
    if (Bits == 8 || q % 2 == 0) _mm_prefetch(reinterpret_cast<const char*>(line) + kAheadBytes, _MM_HINT_T0);
    __m256i wide[4];
    for (int i = 0; i < 4; ++i) {
      __m128i u = _mm_loadu_si128(reinterpret_cast<const __m128i*>(line) + i);
      if (Bits == 4) u = _mm_and_si128(q % 2 ? _mm_srli_epi16(u, 4) : u, low);
      wide[i] = _mm256_cvtepu8_epi16(u);
    }
    for (int j = 0; j < MR; ++j) {
      int32_t quad;
      std::memcpy(&quad, x.bytes(j, g) + 4 * q, 4);
      const __m256i v = _mm256_cvtepi8_epi16(_mm_set1_epi32(quad));
      for (int i = 0; i < 4; ++i) acc[j][i] = _mm256_add_epi32(acc[j][i], _mm256_madd_epi16(wide[i], v));
    }
  }
  for (int j = 0; j < MR; ++j)
    for (int h = 0; h < 2; ++h) sums[j][h] = _mm256_permute4x64_epi64(_mm256_hadd_epi32(acc[j][2 * h], acc[j][2 * h + 1]), 0xd8);
}

template <int Bits, int MR>
inline void add_group(const uint8_t* w, QuantRows x, int64_t g, float (*acc)[Quant::kPanel]) {
  __m256i sums[MR][2];
  dot_group<Bits, MR>(w + 64, x, g, sums);
  for (int j = 0; j < MR; ++j) {
    const __m256i zero = _mm256_set1_epi32(x.sum(j, g) * kZero<Bits>);
    const __m256 x_scale = _mm256_set1_ps(x.scale(j, g));
    for (int h = 0; h < 2; ++h) {
      const __m256 scale = _mm256_mul_ps(_mm256_loadu_ps(reinterpret_cast<const float*>(w) + 8 * h), x_scale);
      const __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(sums[j][h], zero)), scale);
      _mm256_store_ps(acc[j] + 8 * h, _mm256_add_ps(_mm256_load_ps(acc[j] + 8 * h), value));
    }
  }
}

template <int Bits>
void gemm(const void* weights, int64_t w_stride, int64_t n, const void* rows, int64_t x_stride, int64_t m, int64_t k, float* out,
          int64_t out_stride, bool accumulate, const void*) {
  const QuantRows all{static_cast<const char*>(rows), x_stride, Quant::groups(k)};
  for (int64_t i = 0; i < n; i += Quant::kPanel)
    for (int64_t first = 0; first < m; first += kMaxRows) {
      const int64_t count = m - first < kMaxRows ? m - first : kMaxRows;
      const QuantRows x = all.from(first);
      alignas(32) float acc[kMaxRows][Quant::kPanel];
      std::memset(acc, 0, size_t(count) * sizeof acc[0]);
      const uint8_t* w = static_cast<const uint8_t*>(weights) + i * w_stride;
      for (int64_t g = 0; g < x.groups; ++g, w += kGroupBytes<Bits>) {
        int64_t j = 0;
        for (; j + 2 <= count; j += 2) add_group<Bits, 2>(w, x.from(j), g, acc + j);
        if (j < count) add_group<Bits, 1>(w, x.from(j), g, acc + j);
      }
      for (int64_t j = 0; j < count; ++j) {
        float* to = out + (first + j) * out_stride + i;
        for (int64_t r = 0; r < Quant::kPanel && i + r < n; ++r) to[r] = accumulate ? to[r] + acc[j][r] : acc[j][r];
      }
    }
}

}  // namespace

namespace lynx_rt::cpu {
const QuantKernels kAvx2QuantKernels = {gemm<8>, gemm<4>, pack_quant, quantize_group<8>, quantize_group<4>};
}
