// Quantised products with vpdpbusd: a lane is a weight row and takes four columns a step. A loaded line of weights serves up to 12
// rows of x, whose four columns are broadcast.
#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/quant_avx512_inl.h"

namespace {

constexpr int kMost = 12;  // rows of x that a loaded line serves: more of them have too few registers for their addresses

inline __m512i columns(QuantRows x, int64_t j, int64_t g, int64_t q) {
  int32_t quad;
  std::memcpy(&quad, x.bytes(j, g) + 4 * q, 4);
  return _mm512_set1_epi32(quad);
}

inline __m512i multiply_add(__m512i sum, __m512i u, __m512i quad) {
  sum = _mm512_dpbusd_epi32(sum, u, quad);
  asm("" : "+v"(sum));  // else gcc keeps copies of the sums, which cost as much to decode as the products
  return sum;
}

template <int Bits, int MR>
inline void rows_of_group(const char* w, QuantRows x, int64_t g, QuantSums* acc) {
  // Independent partial sums, so that no instruction waits for the one before: integers may be added in any order.
  constexpr int kChains = MR == 1 ? 4 : MR <= 8 ? 2 : 1;
  __m512i dots[MR][kChains];
  for (int j = 0; j < MR; ++j)
    for (int c = 0; c < kChains; ++c) dots[j][c] = _mm512_setzero_si512();
  const char* lines = w + Quant::kLine;
  constexpr int kQuads = kChains > 2 ? kChains : 2, kStep = kQuads * Bits / 8;  // of a turn of the loop; its lines
  for (int64_t l = 0; l < kGroupLines<Bits>; l += kStep)
    for (int s = 0; s < kStep; ++s) {
      const char* line = lines + (l + s) * Quant::kLine;
      _mm_prefetch(line + kAheadBytes, _MM_HINT_T0);
      const __m512i u = _mm512_loadu_si512(line);
      if constexpr (Bits == 8) {
        for (int j = 0; j < MR; ++j) dots[j][s % kChains] = multiply_add(dots[j][s % kChains], u, columns(x, j, g, l + s));
      } else {
        const __m512i low = _mm512_and_si512(u, _mm512_set1_epi8(15)),
                      high = _mm512_and_si512(_mm512_srli_epi16(u, 4), _mm512_set1_epi8(15));
        for (int j = 0; j < MR; ++j) {
          constexpr int kHigh = kChains > 1 ? 1 : 0;
          dots[j][2 * s % kChains] = multiply_add(dots[j][2 * s % kChains], low, columns(x, j, g, 2 * (l + s)));
          dots[j][(2 * s + kHigh) % kChains] =
              multiply_add(dots[j][(2 * s + kHigh) % kChains], high, columns(x, j, g, 2 * (l + s) + 1));
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
                     in_passes<kMost>(count, [&](auto r, int64_t j) { rows_of_group<Bits, r.number>(w, x.from(j), g, acc + j); });
                   });
}

}  // namespace

namespace lynx_rt::cpu {
const QuantKernels kAvx512VnniQuantKernels = {gemm<8>, gemm<4>, pack_quant, quantize_group<8>, quantize_group<4>};
}
