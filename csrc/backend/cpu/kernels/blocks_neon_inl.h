// The common part of the products with weights in blocks of NEON. Dot::fours(c, q) are the four sums of four products of signed bytes.
#pragma once
#include <arm_neon.h>

#include "backend/cpu/kernels/blocks_inl.h"

namespace {

template <class Dot>
struct NeonBlocks {
  struct Codes {
    uint8x16_t low, high;
  };
  static constexpr int kRows = 4;
  static constexpr int at_once(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

  static Codes load(const void* p) {
    const uint8_t* bytes = static_cast<const uint8_t*>(p);
    return {vld1q_u8(bytes), vld1q_u8(bytes + 16)};
  }
  static uint8x16_t lower(uint8x16_t b) { return vandq_u8(b, vdupq_n_u8(15)); }
  static Codes halves(const uint8_t* p) {
    const uint8x16_t b = vld1q_u8(p);
    return {lower(b), vshrq_n_u8(b, 4)};
  }
  static Codes pairs(const uint8_t* p) {
    const Codes b = halves(p);
    return {vzip1q_u8(b.low, b.high), vzip2q_u8(b.low, b.high)};
  }
  static Codes bits(const uint8_t* p, int shift, int mask) {
    const Codes b = load(p);
    const int8x16_t by = vdupq_n_s8(int8_t(-shift));
    const uint8x16_t kept = vdupq_n_u8(uint8_t(mask));
    return {vandq_u8(vshlq_u8(b.low, by), kept), vandq_u8(vshlq_u8(b.high, by), kept)};
  }
  static Codes upper(Codes c, Codes b) {
    return {vorrq_u8(c.low, vshlq_n_u8(b.low, 4)), vorrq_u8(c.high, vshlq_n_u8(b.high, 4))};
  }
  static Codes less(Codes c, int n) {
    const uint8x16_t by = vdupq_n_u8(uint8_t(n));
    return {vsubq_u8(c.low, by), vsubq_u8(c.high, by)};
  }
  static Codes look_up(Codes c, const int8_t (&table)[16]) {
    const uint8x16_t t = vreinterpretq_u8_s8(vld1q_s8(table));
    return {vqtbl1q_u8(t, c.low), vqtbl1q_u8(t, c.high)};
  }
  static float half_float(const uint8_t* p) { return float(read<__fp16>(p)); }
  static void store(int8_t* p, Codes c) {
    vst1q_s8(p, vreinterpretq_s8_u8(c.low));
    vst1q_s8(p + 16, vreinterpretq_s8_u8(c.high));
  }

  static bool fp8(const uint8_t* codes, int64_t n, const Fp8Bits& bits, uint16_t* out) {
    const uint8x16_t low = vld1q_u8(bits.low), high = vld1q_u8(bits.high), zero = vdupq_n_u8(0);
    uint8x16_t largest = zero;
    for (int64_t i = 0; i < n; i += 16) {
      const uint8x16_t code = vld1q_u8(codes + i), size = vandq_u8(code, vdupq_n_u8(127));
      const uint8x16_t entry = vminq_u8(size, vorrq_u8(vandq_u8(code, vdupq_n_u8(7)), vdupq_n_u8(8)));
      const uint8x16_t l = vqtbl1q_u8(low, entry), h = vqtbl1q_u8(high, entry);
      largest = vmaxq_u8(largest, size);
      // Sign and exponent in their places; the sum of two signs is that of a product.
      const auto put = [](uint8x16_t words, uint8x16_t upper, uint16_t* to) {
        const uint16x8_t moved = vreinterpretq_u16_s16(vshrq_n_s16(vreinterpretq_s16_u8(upper), 4));
        vst1q_u16(to, vaddq_u16(vreinterpretq_u16_u8(words), vandq_u16(moved, vdupq_n_u16(0x8780))));
      };
      put(vzip1q_u8(l, h), vzip1q_u8(zero, code), out + i);
      put(vzip2q_u8(l, h), vzip2q_u8(zero, code), out + i + 8);
    }
    return vmaxvq_u8(largest) == 127;
  }

  static void add_minimums(const float* a, const float* b, int64_t n, Lanes& low) {
    for (int64_t r = 0; r < n; r += 4) {
      float* to = low + r % 8;
      vst1q_f32(to, vfmaq_f32(vld1q_f32(to), vld1q_f32(a + r), vld1q_f32(b + r)));
    }
  }

  template <BlockCode Code, int W, int R, bool kSteps>
  static void add(const Decoded* parts, int64_t groups, BlockX x, int64_t first, Lanes* const* acc) {
    const int8_t* bytes = reinterpret_cast<const int8_t*>(x.bytes(0, first));
    const float* scales = x.scales(0) + first;
    const int64_t scale_stride = x.stride / 4;
    for (int64_t g = 0; g < groups; ++g) {
      int32x4_t sums[W][R][2];
      float32x4_t values[W][R][2];
      for (int t = 0; t < W; ++t)
        for (int j = 0; j < R; ++j)
          for (int h = 0; h < 2; ++h) sums[t][j][h] = vdupq_n_s32(0), values[t][j][h] = vdupq_n_f32(0);
      for (int64_t r = g * kGroupRuns; r < (g + 1) * kGroupRuns; ++r, bytes += kRun)
        for (int t = 0; t < W; ++t)
          for (int h = 0; h < 2; ++h) {
            const Decoded& part = parts[t];
            const int8x16_t codes = vld1q_s8(part.codes + kRun * r + 16 * h);
            const int32_t step = int16_t(part.steps[Code == BlockCode::kQ6_K ? h : 0][r]);
            for (int j = 0; j < R; ++j) {
              const int32x4_t fours = Dot::fours(codes, vld1q_s8(bytes + j * x.stride + 16 * h));
              if constexpr (kSteps)
                sums[t][j][h] = vmlaq_n_s32(sums[t][j][h], fours, step);
              else
                values[t][j][h] = vfmaq_n_f32(values[t][j][h], vcvtq_f32_s32(fours), part.scales[r]);
            }
          }
      for (int t = 0; t < W; ++t)
        for (int j = 0; j < R; ++j)
          for (int h = 0; h < 2; ++h) {
            float32x4_t& value = values[t][j][h];
            if constexpr (kSteps) value = vmulq_n_f32(vcvtq_f32_s32(sums[t][j][h]), parts[t].group_scales[g]);
            float* to = acc[t][j] + 4 * h;
            vst1q_f32(to, vfmaq_n_f32(vld1q_f32(to), value, scales[j * scale_stride + g]));
          }
    }
  }
};

}  // namespace
