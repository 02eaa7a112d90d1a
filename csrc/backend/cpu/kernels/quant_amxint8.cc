// Quantised products with the tile registers of AMX. Packed rows of x are the left operand, 64 columns of a panel the right one, so
// that a row of the result tile is a row of x and its columns are the weight rows.
#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/quant_avx512_inl.h"
#include "backend/cpu/kernels/tiles.h"

namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kFewRows = 2;  // for at most this many rows vpdpbusd, with the same result, is faster than tiles

// C += A * B, A signed and B unsigned.
template <int C, int A, int B>
inline void multiply_add() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" LYNX_RT_SPACE ::"i"(C), "i"(A), "i"(B));
}

// Tiles: 0 and 1 hold results, 2 and 3 the first half of a group of x, 4 and 5 the second, 6 and 7 both halves of the weights. Below
// 6, even tiles are for 16 rows of x and odd ones for the rest.
constexpr int kDots = 0, kX = 2, kWeights = 6;

void configure(int64_t rest) {
  TileConfig config;
  for (int t = 0; t < 8; ++t) config.set(t, t < kWeights && t % 2 && rest ? rest : kTileRows, Quant::kLine);
  config.load();
}

// Multiplies rows of x with a group whose weights are in their tiles. Tail: 0 for 16 rows, 1 for the rest.
template <int Bits, int Tail>
inline void rows_of_group(const char* w, QuantRows x, int64_t rows, int64_t g, QuantSums* acc) {
  alignas(64) int32_t dots[kTileRows][Quant::kPanel];
  zero_tile<kDots + Tail>();
  load_tile<kX + Tail>(x.bytes(0, g), x.stride);
  multiply_add<kDots + Tail, kX + Tail, kWeights>();
  load_tile<kX + 2 + Tail>(x.bytes(0, g) + 64, x.stride);
  multiply_add<kDots + Tail, kX + 2 + Tail, kWeights + 1>();
  store_tile<kDots + Tail>(dots, Quant::kLine);
  const __m512 scales = _mm512_loadu_ps(w);
  for (int64_t j = 0; j < rows; ++j) add_group<Bits>(_mm512_load_si512(dots[j]), x, j, g, scales, acc[j]);
}

template <int Bits>
inline void load_weights(const char* lines) {
  for (int64_t l = 0; l < kGroupLines<Bits>; ++l) _mm_prefetch(lines + l * Quant::kLine + kAheadBytes, _MM_HINT_T0);
  if constexpr (Bits == 8) {
    load_tile<kWeights>(lines, Quant::kLine);
    load_tile<kWeights + 1>(lines + 16 * Quant::kLine, Quant::kLine);
  } else {
    alignas(64) char wide[32 * Quant::kLine];
    const __m512i low = _mm512_set1_epi8(15);
    for (int64_t l = 0; l < 16; ++l) {
      const __m512i u = _mm512_loadu_si512(lines + l * Quant::kLine);
      _mm512_store_si512(wide + 2 * l * Quant::kLine, _mm512_and_si512(u, low));
      _mm512_store_si512(wide + (2 * l + 1) * Quant::kLine, _mm512_and_si512(_mm512_srli_epi16(u, 4), low));
    }
    load_tile<kWeights>(wide, Quant::kLine);
    load_tile<kWeights + 1>(wide + 16 * Quant::kLine, Quant::kLine);
  }
}

template <int Bits>
void gemm(const void* weights, int64_t w_stride, int64_t n, const void* rows, int64_t x_stride, int64_t m, int64_t k, float* out,
          int64_t out_stride, bool accumulate, const void*) {
  if (m <= kFewRows) {
    const lynx_rt::cpu::QuantKernels& vnni = lynx_rt::cpu::kAvx512VnniQuantKernels;
    return (Bits == 8 ? vnni.gemm_int8 : vnni.gemm_int4)(weights, w_stride, n, rows, x_stride, m, k, out, out_stride, accumulate,
                                                         nullptr);
  }
  configure(m % kTileRows);
  for_groups<Bits>(weights, w_stride, n, rows, x_stride, m, k, out, out_stride, accumulate,
                   [](const char* w, QuantRows x, int64_t count, int64_t g, QuantSums* acc) {
                     load_weights<Bits>(w + Quant::kLine);
                     int64_t j = 0;
                     for (; j + kTileRows <= count; j += kTileRows) rows_of_group<Bits, 0>(w, x.from(j), kTileRows, g, acc + j);
                     if (j < count) rows_of_group<Bits, 1>(w, x.from(j), count - j, g, acc + j);
                   });
  release_tiles();
}

}  // namespace

namespace lynx_rt::cpu {
const QuantKernels kAmxInt8QuantKernels = {gemm<8>, gemm<4>, pack_quant, quantize_group<8>, quantize_group<4>};
}
