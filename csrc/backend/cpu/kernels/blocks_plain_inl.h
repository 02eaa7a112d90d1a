// Registers of 32 codes in plain operations, and the product of blocks.h as it is written there.
#pragma once
#include "backend/cpu/kernels/blocks_inl.h"

namespace {

struct PlainBlocks {
  struct Codes {
    int8_t v[32];
  };
  static constexpr int kRows = 1;
  static constexpr int at_once(int) { return 1; }

  static Codes load(const uint8_t* p) {
    Codes c;
    std::memcpy(c.v, p, sizeof c.v);
    return c;
  }
  static Codes halves(const uint8_t* p) {
    Codes c;
    for (int i = 0; i < 16; ++i) c.v[i] = int8_t(p[i] & 15), c.v[16 + i] = int8_t(p[i] >> 4);
    return c;
  }
  static Codes pairs(const uint8_t* p) {
    Codes c;
    for (int i = 0; i < 16; ++i) c.v[2 * i] = int8_t(p[i] & 15), c.v[2 * i + 1] = int8_t(p[i] >> 4);
    return c;
  }
  static Codes bits(const uint8_t* p, int shift, int mask) {
    Codes c;
    for (int i = 0; i < 32; ++i) c.v[i] = int8_t(p[i] >> shift & mask);
    return c;
  }
  static Codes upper(Codes c, Codes b) {
    for (int i = 0; i < 32; ++i) c.v[i] = int8_t(c.v[i] | b.v[i] << 4);
    return c;
  }
  static Codes less(Codes c, int n) {
    for (int i = 0; i < 32; ++i) c.v[i] = int8_t(c.v[i] - n);
    return c;
  }
  static Codes look_up(Codes c, const int8_t (&table)[16]) {
    for (int i = 0; i < 32; ++i) c.v[i] = table[c.v[i]];
    return c;
  }
  static void store(int8_t* p, Codes c) { std::memcpy(p, c.v, sizeof c.v); }

  // The functions of base/types.h are compiled for other instruction sets.
  static float half_float(const uint8_t* p) {
    const uint16_t h = read<uint16_t>(p);
    const uint32_t bits = uint32_t(h & 0x7fff) << 13;
    // The exponent of bits is 112 too small; infinity and NaN have the largest exponent instead.
    const float v = bits >= 0x0f800000u ? std::bit_cast<float>(bits + 0x70000000u) : std::bit_cast<float>(bits) * 0x1p112f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(v) | uint32_t(h & 0x8000) << 16);
  }

  static void add_minimums(const float* a, const float* b, int64_t n, Lanes& low) {
    for (int64_t r = 0; r < n; ++r) low[r % 8] = __builtin_fmaf(a[r], b[r], low[r % 8]);
  }

  static bool fp8(const uint8_t* codes, int64_t n, const Fp8Bits& bits, uint16_t* out) {
    bool nan = false;
    for (int64_t i = 0; i < n; ++i) {
      const unsigned c = codes[i] & 127u, entry = c < 8 ? c : 8 | (c & 7);
      nan |= c == 127;
      out[i] = uint16_t((unsigned(bits.high[entry] << 8 | bits.low[entry]) + ((c & 0x78) << 4)) ^ (codes[i] & 128u) << 8);
    }
    return nan;
  }

  template <BlockCode Code, int W, int R, bool kSteps>
  static void add(const Decoded* parts, int64_t groups, BlockX x, int64_t first, Lanes* const* acc) {
    const Decoded& part = *parts;
    Lanes& lanes = acc[0][0];
    for (int64_t g = 0; g < groups; ++g) {
      const int8_t* q = reinterpret_cast<const int8_t*>(x.bytes(0, first + g));
      const float scale = x.scales(0)[first + g];
      for (int64_t l = 0; l < 8; ++l) {
        int32_t steps = 0;
        float sum = 0;
        for (int64_t b = 0; b < kGroupRuns; ++b) {
          const int64_t r = g * kGroupRuns + b, at = kRun * b + 4 * l;
          int32_t p = 0;
          for (int64_t i = 0; i < 4; ++i) p += part.codes[g * kGroup + at + i] * q[at + i];
          if (kSteps) {
            steps += p * int16_t(part.steps[Code == BlockCode::kQ6_K ? l / 4 : 0][r]);
          } else {
            sum = __builtin_fmaf(float(p), part.scales[r], sum);
          }
        }
        if (kSteps) sum = float(steps) * part.group_scales[g];
        lanes[l] = __builtin_fmaf(sum, scale, lanes[l]);
      }
    }
  }
};

}  // namespace
