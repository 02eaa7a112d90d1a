// The common part of the products with weights in blocks of NEON. Dot::add(sum, c, q) adds four products of signed bytes to each word of
// a sum.
#pragma once
#include <arm_neon.h>

#include "backend/cpu/kernels/blocks_gemm_inl.h"

namespace {

template <class Dot>
struct NeonBlocks {
  // 32 bytes: of a row, or 4 of each of 8 rows.
  struct Codes {
    uint8x16_t low, high;
  };
  using Eight = Codes;
  static constexpr int kSignedZero = 0;

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
  static Codes bits(const uint8_t* p, int shift, int mask) { return bits(load(p), shift, mask); }
  static Codes bits(Codes b, int shift, int mask) {
    const int8x16_t by = vdupq_n_s8(int8_t(-shift));
    const uint8x16_t kept = vdupq_n_u8(uint8_t(mask));
    return {vandq_u8(vshlq_u8(b.low, by), kept), vandq_u8(vshlq_u8(b.high, by), kept)};
  }
  static Codes upper(Codes c, Codes b) {
    return {vorrq_u8(c.low, vshlq_n_u8(b.low, 4)), vorrq_u8(c.high, vshlq_n_u8(b.high, 4))};
  }
  static Codes look_up(Codes c, const int8_t (&table)[16]) {
    const uint8x16_t t = vreinterpretq_u8_s8(vld1q_s8(table));
    return {vqtbl1q_u8(t, c.low), vqtbl1q_u8(t, c.high)};
  }
  static float half_float(const uint8_t* p) { return float(read<__fp16>(p)); }
  static void store(void* p, Codes c) {
    vst1q_u8(static_cast<uint8_t*>(p), c.low);
    vst1q_u8(static_cast<uint8_t*>(p) + 16, c.high);
  }

  static uint32x4_t words_of(uint8x16_t v) { return vreinterpretq_u32_u8(v); }
  static int32x4_t integers_of(uint8x16_t v) { return vreinterpretq_s32_u8(v); }
  static uint8x16_t bytes_of(uint32x4_t v) { return vreinterpretq_u8_u32(v); }
  static uint8x16_t bytes_of(int32x4_t v) { return vreinterpretq_u8_s32(v); }

  // The 16 bytes at p and at the next 3 rows: 4 bytes of each row.
  static void columns(const uint8_t* p, int64_t stride, uint8x16_t (&out)[4]) {
    uint32x4_t rows[4];
    for (int i = 0; i < 4; ++i) rows[i] = words_of(vld1q_u8(p + i * stride));
    const auto merge = [&](int i, uint32x4_t a, uint32x4_t b) {
      out[i] = vreinterpretq_u8_u64(vtrn1q_u64(vreinterpretq_u64_u32(a), vreinterpretq_u64_u32(b)));
      out[i + 2] = vreinterpretq_u8_u64(vtrn2q_u64(vreinterpretq_u64_u32(a), vreinterpretq_u64_u32(b)));
    };
    merge(0, vtrn1q_u32(rows[0], rows[1]), vtrn1q_u32(rows[2], rows[3]));
    merge(1, vtrn2q_u32(rows[0], rows[1]), vtrn2q_u32(rows[2], rows[3]));
  }
  static void columns(const uint8_t* p, int64_t stride, Eight (&out)[4]) {
    uint8x16_t first[4], last[4];
    columns(p, stride, first);
    columns(p + 4 * stride, stride, last);
    for (int i = 0; i < 4; ++i) out[i] = {first[i], last[i]};
  }
  static Eight low(Eight e) { return {lower(e.low), lower(e.high)}; }
  static Eight high(Eight e) { return {vshrq_n_u8(e.low, 4), vshrq_n_u8(e.high, 4)}; }
  static void pairs(Eight e, Eight& first, Eight& second) {
    const auto split = [](uint8x16_t v, uint8x16_t& a, uint8x16_t& b) {
      const uint8x16_t l = lower(v), h = vshrq_n_u8(v, 4);
      const uint32x4_t low_rows = words_of(vzip1q_u8(l, h)), high_rows = words_of(vzip2q_u8(l, h));
      a = bytes_of(vuzp1q_u32(low_rows, high_rows));
      b = bytes_of(vuzp2q_u32(low_rows, high_rows));
    };
    split(e.low, first.low, second.low);
    split(e.high, first.high, second.high);
  }
  template <class Change>
  static Eight each(Eight e, const Change& change) {
    return {change(e.low), change(e.high)};
  }
  template <int I, bool kSigned>
  static Eight bytes(Eight e) {
    return twice(each(e, [](uint8x16_t v) {
      const int32x4_t top = vshlq_n_s32(integers_of(v), 24 - 8 * I);
      return kSigned ? bytes_of(vshrq_n_s32(top, 24)) : bytes_of(vshrq_n_u32(vreinterpretq_u32_s32(top), 24));
    }));
  }
  static Eight twice(Eight e) {
    return each(e, [](uint8x16_t v) { return bytes_of(vsliq_n_u32(words_of(v), words_of(v), 16)); });
  }
  static Eight words(Eight e, int shift, int mask) {
    return each(e, [&](uint8x16_t v) {
      return bytes_of(vandq_u32(vshlq_u32(words_of(v), vdupq_n_s32(-shift)), vdupq_n_u32(uint32_t(mask))));
    });
  }
  static Eight less(Eight e, int n) {
    return each(e, [&](uint8x16_t v) { return bytes_of(vsubq_s32(integers_of(v), vdupq_n_s32(n))); });
  }
  static Eight halves_times(Eight first, Eight last, int n) {
    const auto of = [&](uint8x16_t a, uint8x16_t b) {
      const uint16x8_t both = vreinterpretq_u16_u32(vbslq_u32(vdupq_n_u32(0xffff), words_of(a), words_of(b)));
      return vreinterpretq_u8_u16(vmulq_n_u16(both, uint16_t(n)));
    };
    return {of(first.low, last.low), of(first.high, last.high)};
  }
  static void half_words(Eight e, int i, float* to) {
    const int32x4_t by = vdupq_n_s32(-16 * i);
    const auto convert = [&](uint8x16_t v) { return vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(vshlq_u32(words_of(v), by)))); };
    vst1q_f32(to, convert(e.low));
    vst1q_f32(to + 4, convert(e.high));
  }
  static void half_floats(const uint8_t* p, int64_t stride, float* to) {
    for (int i = 0; i < kEight; ++i) to[i] = half_float(p + i * stride);
  }
  static void powers(const uint8_t* p, int64_t stride, float* to) {
    for (int i = 0; i < kEight; ++i) to[i] = power(p[i * stride]);
  }

  template <BlockCode Code>
  static constexpr int most() {
    return 3;
  }

  static constexpr int kParts = kPanel / 4;  // registers of 4 rows

  // The part that a run's zeros or minimums have: two of each row, with the sums of q of both halves of the run.
  static int32x4_t of_sums(const int32_t* words, const BlockX& x, int64_t j, int64_t r) {
    int32_t both;
    std::memcpy(&both, x.sums(j, r), 4);
    const int16x8_t two = vreinterpretq_s16_s32(vdupq_n_s32(both)), of_w = vreinterpretq_s16_s32(vld1q_s32(words));
    return vpaddq_s32(vmull_s16(vget_low_s16(of_w), vget_low_s16(two)), vmull_high_s16(of_w, two));
  }

  template <BlockCode Code>
  static int32x4_t zeros(const Panel& panel, int64_t r, int i, const BlockX& x, int64_t j, int64_t x_run) {
    constexpr int kZero = panel_zero<NeonBlocks>(Code);
    const int16_t* sums = x.sums(j, x_run);
    if (kZero >= 0) return vdupq_n_s32(kZero * (sums[0] + sums[1]));
    return of_sums(panel.zeros[r] + 4 * i, x, j, x_run);
  }

  template <BlockCode Code, Scaling kScaling, int R>
  static void add(const Panel& panel, int64_t runs, const BlockX& x, int64_t first, PanelSums* out) {
    constexpr bool kZero = panel_zero<NeonBlocks>(Code) != 0, kSix = Code == BlockCode::kQ6_K;
    constexpr int kSummed = kSix ? 4 : 8;  // quads with one step
    for (int64_t begin = 0; begin < runs; begin += kGroupRuns) {
      const int64_t end = begin + kGroupRuns < runs ? begin + kGroupRuns : runs, g = begin / kGroupRuns;
      int32x4_t sums[kParts][R];
      float32x4_t values[kParts][R];
      for (int i = 0; i < kParts; ++i)
        for (int j = 0; j < R; ++j) sums[i][j] = vdupq_n_s32(0), values[i][j] = vdupq_n_f32(0);
      for (int64_t r = begin; r < end; ++r) {
        const int8_t* bytes = reinterpret_cast<const int8_t*>(x.bytes(0, first + r));
        for (int at = 0; at < kQuads; at += kSummed) {
          int32x4_t part[kParts][R];
          for (int i = 0; i < kParts; ++i)
            for (int j = 0; j < R; ++j) part[i][j] = vdupq_n_s32(0);
          for (int q = at; q < at + kSummed; ++q) {
            int8x16_t c[kParts];
            for (int i = 0; i < kParts; ++i) c[i] = vreinterpretq_s8_u8(vld1q_u8(panel.codes[r][q][4 * i]));
            for (int j = 0; j < R; ++j) {
              int32_t quad;
              std::memcpy(&quad, bytes + j * x.stride + 4 * q, 4);
              const int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(quad));
              for (int i = 0; i < kParts; ++i) part[i][j] = Dot::add(part[i][j], c[i], four);
            }
          }
          for (int i = 0; i < kParts; ++i)
            for (int j = 0; j < R; ++j)
              if constexpr (kScaling == Scaling::kSteps)
                sums[i][j] =
                    vmlaq_s32(sums[i][j], part[i][j], vshrq_n_s32(vld1q_s32(panel.steps[r][kSix ? at / 4 : 0] + 4 * i), 16));
              else if constexpr (kScaling == Scaling::kGroups)
                sums[i][j] = vaddq_s32(sums[i][j], part[i][j]);
              else
                sums[i][j] = part[i][j];
        }
        if constexpr (kScaling == Scaling::kRuns)
          for (int i = 0; i < kParts; ++i)
            for (int j = 0; j < R; ++j) {
              int32x4_t sum = sums[i][j];
              if constexpr (kZero) sum = vsubq_s32(sum, zeros<Code>(panel, r, i, x, j, first + r));
              values[i][j] = vfmaq_f32(values[i][j], vcvtq_f32_s32(sum), vld1q_f32(panel.scales[r] + 4 * i));
            }
      }
      for (int j = 0; j < R; ++j)
        for (int i = 0; i < kParts; ++i) {
          float32x4_t value = values[i][j];
          if constexpr (kScaling != Scaling::kRuns) {
            int32x4_t sum = sums[i][j];
            if constexpr (kZero)
              for (int64_t r = begin; r < end; ++r) sum = vsubq_s32(sum, zeros<Code>(panel, r, i, x, j, first + r));
            value = vmulq_f32(vcvtq_f32_s32(sum), vld1q_f32(panel.group_scales[g] + 4 * i));
            if constexpr (has_minimums(Code)) {
              int32x4_t low = vdupq_n_s32(0);
              for (int64_t r = begin; r < end; ++r) low = vaddq_s32(low, of_sums(panel.minimums[r] + 4 * i, x, j, first + r));
              value = vfmsq_f32(value, vcvtq_f32_s32(low), vld1q_f32(panel.group_minimums[g] + 4 * i));
            }
          }
          float* to = out[j] + 4 * i;
          vst1q_f32(to, vfmaq_n_f32(vld1q_f32(to), value, x.scale(j, first / kGroupRuns + g)));
        }
    }
  }
};

}  // namespace
