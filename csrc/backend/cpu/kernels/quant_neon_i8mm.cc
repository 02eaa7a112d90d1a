// Quantised products with usmmla, which multiplies eight columns of two weight rows with those of two rows of x. A single row of x is
// multiplied by usdot, four columns at a time. Weights stay unsigned.
#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/quant_neon_inl.h"

namespace {

// dots[j][p] of weight rows 4 (first + p) .. + 3 and rows j of x.
template <int Bits, int MR, int Parts>
inline void dot_pairs(const char* lines, QuantRows x, int64_t g, int first, int32x4_t (&dots)[MR][Parts]) {
  int32x4_t blocks[MR / 2][Parts][2];  // of weight rows 0 and 1, of 2 and 3: each with row 2 j, with row 2 j + 1
  for (auto& pair : blocks)
    for (auto& part : pair)
      for (int32x4_t& block : part) block = vdupq_n_s32(0);
  for (int64_t e = 0; e < Quant::kGroup / 8; e += 2) {
    int8x16_t v[MR / 2][2];  // eight columns of two rows, and the next eight
    for (int j = 0; j < MR; j += 2) {
      const int64x2_t a = vld1q_s64(reinterpret_cast<const int64_t*>(x.bytes(j, g) + 8 * e)),
                      b = vld1q_s64(reinterpret_cast<const int64_t*>(x.bytes(j + 1, g) + 8 * e));
      v[j / 2][0] = vreinterpretq_s8_s64(vzip1q_s64(a, b));
      v[j / 2][1] = vreinterpretq_s8_s64(vzip2q_s64(a, b));
    }
    for (int h = 0; h < 2; ++h) {
      if (first == 0) prefetch_columns<Bits>(lines, e + h);
      for (int p = 0; p < Parts; ++p) {
        const uint8x16x2_t u = eight_columns<Bits>(lines, e + h, first + p);
        const uint32x4_t even = vreinterpretq_u32_u8(u.val[0]), odd = vreinterpretq_u32_u8(u.val[1]);
        const uint8x16_t upper = vreinterpretq_u8_u32(vzip1q_u32(even, odd)), lower = vreinterpretq_u8_u32(vzip2q_u32(even, odd));
        for (int j = 0; j < MR / 2; ++j) {
          blocks[j][p][0] = vusmmlaq_s32(blocks[j][p][0], upper, v[j][h]);
          blocks[j][p][1] = vusmmlaq_s32(blocks[j][p][1], lower, v[j][h]);
        }
      }
    }
  }
  for (int j = 0; j < MR; j += 2)
    for (int p = 0; p < Parts; ++p) {
      const auto& [upper, lower] = blocks[j / 2][p];
      dots[j][p] = vuzp1q_s32(upper, lower);
      dots[j + 1][p] = vuzp2q_s32(upper, lower);
    }
}

// Adds columns 8 e .. 8 e + 7, which are lanes 2 * Half and 2 * Half + 1 of v. The even and the odd four columns have a sum each, so that
// fewer instructions wait for the one before.
template <int Bits, int Half>
inline void add_columns(const char* lines, int64_t e, int8x16_t v, int32x4_t (&dots)[kParts][2]) {
  prefetch_columns<Bits>(lines, e);
  for (int p = 0; p < kParts; ++p) {
    const uint8x16x2_t u = eight_columns<Bits>(lines, e, p);
    dots[p][0] = vusdotq_laneq_s32(dots[p][0], u.val[0], v, 2 * Half);
    dots[p][1] = vusdotq_laneq_s32(dots[p][1], u.val[1], v, 2 * Half + 1);
  }
}

template <int Bits>
inline void dot_row(const char* lines, QuantRows x, int64_t g, int32x4_t (&dots)[1][kParts]) {
  int32x4_t sums[kParts][2];
  for (auto& part : sums) part[0] = part[1] = vdupq_n_s32(0);
  for (int64_t e = 0; e < Quant::kGroup / 8; e += 2) {
    const int8x16_t v = vld1q_s8(reinterpret_cast<const int8_t*>(x.bytes(0, g)) + 8 * e);
    add_columns<Bits, 0>(lines, e, v, sums);
    add_columns<Bits, 1>(lines, e + 1, v, sums);
  }
  for (int p = 0; p < kParts; ++p) dots[0][p] = vaddq_s32(sums[p][0], sums[p][1]);
}

template <int Bits, int MR>
inline void rows_of_group(const char* w, QuantRows x, int64_t g, QuantSums* acc) {
  constexpr int kAtOnce = MR > 4 ? 2 : 4;  // parts whose sums stay in registers
  for (int first = 0; first < kParts; first += kAtOnce) {
    int32x4_t dots[MR][kAtOnce];
    if constexpr (MR == 1)
      dot_row<Bits>(w + Quant::kLine, x, g, dots);
    else
      dot_pairs<Bits>(w + Quant::kLine, x, g, first, dots);
    for (int j = 0; j < MR; ++j)
      for (int p = 0; p < kAtOnce; ++p) add_part(dots[j][p], x.sum(j, g) * kZero<Bits>, w, x.scale(j, g), first + p, acc[j]);
  }
}

}  // namespace

namespace lynx_rt::cpu {
const QuantKernels kNeonI8mmQuantKernels = {gemm<8, 8>, gemm<4, 8>, pack_quant, quantize_group<8>, quantize_group<4>};
}
