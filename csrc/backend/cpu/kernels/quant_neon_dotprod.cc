// Quantised products with sdot: four columns of four weight rows are multiplied with four columns of a row of x, a lane of a register.
#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/quant_neon_inl.h"

namespace {

template <int MR, int Parts, int Chains>
using Dots = int32x4_t[MR][Parts][Chains];

// Adds columns 8 e .. 8 e + 7, which are lanes 2 * Half and 2 * Half + 1 of v, of parts `first` and following.
template <int Bits, int Half, int MR, int Parts, int Chains>
inline void add_columns(const char* lines, int64_t e, int first, const int8x16_t (&v)[MR], Dots<MR, Parts, Chains>& dots) {
  for (int p = 0; p < Parts; ++p) {
    uint8x16x2_t u = eight_columns<Bits>(lines, e, first + p);
    if constexpr (Bits == 8)
      for (uint8x16_t& columns : u.val) columns = veorq_u8(columns, vdupq_n_u8(128));  // u - 128, signed
    const int8x16_t even = vreinterpretq_s8_u8(u.val[0]), odd = vreinterpretq_s8_u8(u.val[1]);
    for (int j = 0; j < MR; ++j) {
      int32x4_t &one = dots[j][p][0], &other = dots[j][p][Chains - 1];
      one = vdotq_laneq_s32(one, even, v[j], 2 * Half);
      other = vdotq_laneq_s32(other, odd, v[j], 2 * Half + 1);
    }
  }
}

template <int Bits, int MR>
inline void rows_of_group(const char* w, QuantRows x, int64_t g, QuantSums* acc) {
  constexpr int kAtOnce = MR > 4 ? 2 : 4;   // parts whose sums stay in registers
  constexpr int kChains = MR == 1 ? 2 : 1;  // independent sums, so that no instruction waits for the one before
  const char* lines = w + Quant::kLine;
  for (int first = 0; first < kParts; first += kAtOnce) {
    Dots<MR, kAtOnce, kChains> dots;
    for (auto& row : dots)
      for (auto& part : row)
        for (int32x4_t& sum : part) sum = vdupq_n_s32(0);
    for (int64_t e = 0; e < Quant::kGroup / 8; e += 2) {
      if (first == 0) prefetch_columns<Bits>(lines, e), prefetch_columns<Bits>(lines, e + 1);
      int8x16_t v[MR];
      for (int j = 0; j < MR; ++j) v[j] = vld1q_s8(reinterpret_cast<const int8_t*>(x.bytes(j, g)) + 8 * e);
      add_columns<Bits, 0, MR, kAtOnce, kChains>(lines, e, first, v, dots);
      add_columns<Bits, 1, MR, kAtOnce, kChains>(lines, e + 1, first, v, dots);
    }
    for (int j = 0; j < MR; ++j) {
      const int32_t zero = Bits == 8 ? 0 : x.sum(j, g) * kZero<Bits>;  // 8 bits: taken off the weights
      for (int p = 0; p < kAtOnce; ++p) {
        int32x4_t sum = dots[j][p][0];
        if constexpr (kChains == 2) sum = vaddq_s32(sum, dots[j][p][1]);
        add_part(sum, zero, w, x.scale(j, g), first + p, acc[j]);
      }
    }
  }
}

}  // namespace

namespace lynx_rt::cpu {
const QuantKernels kNeonDotprodQuantKernels = {gemm<8, 8>, gemm<4, 8>, pack_quant, quantize_group<8>, quantize_group<4>};
}
