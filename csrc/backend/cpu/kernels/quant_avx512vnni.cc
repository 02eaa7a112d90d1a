// Quantised products with vpdpbusd: a lane is a weight row and takes four columns a step. A loaded line of weights serves up to 16
// rows of x, whose four columns are broadcast.
#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/quant_avx512_inl.h"

namespace {

inline __m512i columns(QuantRows x, int64_t j, int64_t g, int64_t q) {
  int32_t quad;
  std::memcpy(&quad, x.bytes(j, g) + 4 * q, 4);
  return _mm512_set1_epi32(quad);
}

template <int Bits, int MR>
inline void rows_of_group(const char* w, QuantRows x, int64_t g, QuantSums* acc) {
  // Independent partial sums, so that no instruction waits for the one before: integers may be added in any order.
  constexpr int kChains = MR == 1 ? 4 : MR <= 4 ? 2 : 1;
  __m512i dots[MR][kChains];
  for (int j = 0; j < MR; ++j)
    for (int c = 0; c < kChains; ++c) dots[j][c] = _mm512_setzero_si512();
  const char* lines = w + Quant::kLine;
  constexpr int kStep = Bits == 8 ? kChains : (kChains + 1) / 2;
  for (int64_t l = 0; l < kGroupLines<Bits>; l += kStep)
    for (int s = 0; s < kStep; ++s) {
      const char* line = lines + (l + s) * Quant::kLine;
      _mm_prefetch(line + kAheadBytes, _MM_HINT_T0);
      const __m512i u = _mm512_loadu_si512(line);
      if constexpr (Bits == 8) {
        for (int j = 0; j < MR; ++j) dots[j][s] = _mm512_dpbusd_epi32(dots[j][s], u, columns(x, j, g, l + s));
      } else {
        const __m512i low = _mm512_and_si512(u, _mm512_set1_epi8(15)),
                      high = _mm512_and_si512(_mm512_srli_epi16(u, 4), _mm512_set1_epi8(15));
        for (int j = 0; j < MR; ++j) {
          constexpr int kHigh = kChains > 1 ? 1 : 0;
          __m512i &even = dots[j][2 * s % kChains], &odd = dots[j][(2 * s + kHigh) % kChains];
          even = _mm512_dpbusd_epi32(even, low, columns(x, j, g, 2 * (l + s)));
          odd = _mm512_dpbusd_epi32(odd, high, columns(x, j, g, 2 * (l + s) + 1));
        }
      }
    }
  const __m512 scales = _mm512_loadu_ps(w);
  for (int j = 0; j < MR; ++j) {
    for (int c = 1; c < kChains; ++c) dots[j][0] = _mm512_add_epi32(dots[j][0], dots[j][c]);
    add_group<Bits>(dots[j][0], x, j, g, scales, acc[j]);
  }
}

template <int Bits>
void gemm(const void* weights, int64_t w_stride, int64_t n, const void* rows, int64_t x_stride, int64_t m, int64_t k, float* out,
          int64_t out_stride, bool accumulate, const void*) {
  for_groups<Bits>(weights, w_stride, n, rows, x_stride, m, k, out, out_stride, accumulate,
                   [](const char* w, QuantRows x, int64_t count, int64_t g, QuantSums* acc) {
                     int64_t j = 0;
                     for (; j + 16 <= count; j += 16) rows_of_group<Bits, 16>(w, x.from(j), g, acc + j);
                     if (count & 8) rows_of_group<Bits, 8>(w, x.from(j), g, acc + j), j += 8;
                     if (count & 4) rows_of_group<Bits, 4>(w, x.from(j), g, acc + j), j += 4;
                     if (count & 2) rows_of_group<Bits, 2>(w, x.from(j), g, acc + j), j += 2;
                     if (count & 1) rows_of_group<Bits, 1>(w, x.from(j), g, acc + j);
                   });
}

}  // namespace

namespace lynx_rt::cpu {
const QuantKernels kAvx512VnniQuantKernels = {gemm<8>, gemm<4>, pack_quant, quantize_group<8>, quantize_group<4>};
}
