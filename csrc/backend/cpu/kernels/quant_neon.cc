// Quantised products with NEON alone: bytes are multiplied to 16 bits, and sums of such products are added to 32 bits in pairs.
#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/quant_neon_inl.h"

namespace {

// Steps of eight columns whose products, two per lane, have a sum within 16 bits: 2 * 128 * 127, or 16 * 15 * 127.
template <int Bits>
constexpr int64_t kSteps = Bits == 8 ? 1 : 8;

// Adds to 16 bits the products of eight columns, u and v, of weight rows 0 and 1 (low), 2 and 3 (high).
inline void multiply_add(const int8x16_t (&u)[2], const int8x16_t (&v)[2], int16x8_t& low, int16x8_t& high) {
  for (int h = 0; h < 2; ++h) {
    low = vmlal_s8(low, vget_low_s8(u[h]), vget_low_s8(v[h]));
    high = vmlal_high_s8(high, u[h], v[h]);
  }
}

template <int Bits, int MR>
inline void rows_of_group(const char* w, QuantRows x, int64_t g, QuantSums* acc) {
  constexpr int kAtOnce = MR > 2 ? 2 : 4;  // parts whose sums stay in registers
  const char* lines = w + Quant::kLine;
  for (int first = 0; first < kParts; first += kAtOnce) {
    int32x4_t dots[MR][kAtOnce][2];  // of weight rows 0 and 1, of 2 and 3; two sums each
    for (auto& row : dots)
      for (auto& part : row) part[0] = part[1] = vdupq_n_s32(0);
    for (int64_t begin = 0; begin < Quant::kGroup / 8; begin += kSteps<Bits>) {
      int16x8_t sums[MR][kAtOnce][2];
      for (auto& row : sums)
        for (auto& part : row) part[0] = part[1] = vdupq_n_s16(0);
      for (int64_t e = begin; e < begin + kSteps<Bits>; ++e) {
        if (first == 0) prefetch_columns<Bits>(lines, e);
        int8x16_t v[MR][2];
        for (int j = 0; j < MR; ++j)
          for (int h = 0; h < 2; ++h)
            v[j][h] = vreinterpretq_s8_s32(vld1q_dup_s32(reinterpret_cast<const int32_t*>(x.bytes(j, g) + 8 * e + 4 * h)));
        for (int p = 0; p < kAtOnce; ++p) {
          uint8x16x2_t u = eight_columns<Bits>(lines, e, first + p);
          if constexpr (Bits == 8)
            for (uint8x16_t& columns : u.val) columns = veorq_u8(columns, vdupq_n_u8(128));  // u - 128, signed
          const int8x16_t s8[2] = {vreinterpretq_s8_u8(u.val[0]), vreinterpretq_s8_u8(u.val[1])};
          for (int j = 0; j < MR; ++j) {
            multiply_add(s8, v[j], sums[j][p][0], sums[j][p][1]);
            if constexpr (kSteps<Bits> == 1)
              for (int h = 0; h < 2; ++h) dots[j][p][h] = vpadalq_s16(dots[j][p][h], sums[j][p][h]);
          }
        }
      }
      if constexpr (kSteps<Bits> > 1)
        for (int j = 0; j < MR; ++j)
          for (int p = 0; p < kAtOnce; ++p)
            for (int h = 0; h < 2; ++h) dots[j][p][h] = vpadalq_s16(dots[j][p][h], sums[j][p][h]);
    }
    for (int j = 0; j < MR; ++j) {
      const int32_t zero = Bits == 8 ? 0 : x.sum(j, g) * kZero<Bits>;  // 8 bits: taken off the weights
      for (int p = 0; p < kAtOnce; ++p)
        add_part(vpaddq_s32(dots[j][p][0], dots[j][p][1]), zero, w, x.scale(j, g), first + p, acc[j]);
    }
  }
}

}  // namespace

namespace lynx_rt::cpu {
const QuantKernels kNeonQuantKernels = {gemm<8, 4>, gemm<4, 4>, pack_quant, quantize_group<8>, quantize_group<4>};
}
