// Registers of 32 codes in plain operations, and the product of blocks.h as it is written there.
#pragma once
#include "backend/cpu/kernels/blocks_inl.h"

namespace {

constexpr int64_t kPlainX = 64;  // rows of x for which a row of weights is decoded once

struct PlainBlocks {
  struct Codes {
    int8_t v[32];
  };

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
  static Codes look_up(Codes c, const int8_t (&table)[16]) {
    for (int i = 0; i < 32; ++i) c.v[i] = table[c.v[i]];
    return c;
  }
  static void store(int8_t* p, Codes c) { std::memcpy(p, c.v, sizeof c.v); }

  static bool fp8(const uint8_t* codes, int64_t n, const Fp8Bits& bits, uint16_t* out) {
    bool nan = false;
    for (int64_t i = 0; i < n; ++i) {
      const unsigned c = codes[i] & 127u, entry = c < 8 ? c : 8 | (c & 7);
      nan |= c == 127;
      out[i] = uint16_t((unsigned(bits.high[entry] << 8 | bits.low[entry]) + ((c & 0x78) << 4)) ^ (codes[i] & 128u) << 8);
    }
    return nan;
  }

  // The functions of base/types.h are compiled for other instruction sets.
  static float half_float(const uint8_t* p) {
    const uint16_t h = read<uint16_t>(p);
    const uint32_t bits = uint32_t(h & 0x7fff) << 13;
    // The exponent of bits is 112 too small; infinity and NaN have the largest exponent instead.
    const float v = bits >= 0x0f800000u ? std::bit_cast<float>(bits + 0x70000000u) : std::bit_cast<float>(bits) * 0x1p112f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(v) | uint32_t(h & 0x8000) << 16);
  }
};

// The product of group g of a decoded part with a row of x, whose group it is `first` groups later, without the scale of x.
template <BlockCode Code>
float plain_group(const Decoded& part, int64_t runs, int64_t g, BlockX x, int64_t first) {
  const int64_t end = (g + 1) * kGroupRuns < runs ? (g + 1) * kGroupRuns : runs;
  int32_t sum = 0, low = 0;
  float value = 0;
  for (int64_t r = g * kGroupRuns; r < end; ++r) {
    const int8_t* q = reinterpret_cast<const int8_t*>(x.bytes(0, first * kGroupRuns + r));
    int32_t half[2] = {0, 0}, sum_of_q = 0;
    for (int64_t i = 0; i < kRun; ++i) {
      half[i / 16] += (part.codes[r * kRun + i] - part.zeros[r]) * q[i];
      sum_of_q += q[i];
    }
    if (part.has_steps) {
      sum += half[0] * part.steps[0][r] + half[1] * part.steps[1][r];
      if (has_minimums(Code)) low += part.minimums[r] * sum_of_q;
    } else {
      value = __builtin_fmaf(float(half[0] + half[1]), part.scales[r], value);
    }
  }
  if (!part.has_steps) return value;
  value = float(sum) * part.group_scales[g];
  return has_minimums(Code) ? __builtin_fmaf(-float(low), part.group_minimums[g], value) : value;
}

template <BlockCode Code>
void plain_gemm(const BlockRows& w, int64_t n, BlockX x, int64_t m, int64_t k, float* out, int64_t out_stride, bool accumulate) {
  Decoded part;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < m && !accumulate; ++j) out[j * out_stride + i] = 0;
    for (int64_t first = 0; first < m; first += kPlainX) {
      float sums[kPlainX] = {};
      const int64_t count = m - first < kPlainX ? m - first : kPlainX;
      for (int64_t begin = 0; begin < k; begin += kChunk) {
        const int64_t columns = k - begin < kChunk ? k - begin : kChunk;
        decode<PlainBlocks, Code>(w, i, begin, columns, part);
        for (int64_t j = 0; j < count; ++j)
          for (int64_t g = 0; g * kGroup < columns; ++g) {
            const float scale = x.scale(first + j, begin / kGroup + g);
            sums[j] =
                __builtin_fmaf(plain_group<Code>(part, columns / kRun, g, x.from(first + j), begin / kGroup), scale, sums[j]);
          }
      }
      for (int64_t j = 0; j < count; ++j) out[(first + j) * out_stride + i] += sums[j];
    }
  }
}

void plain(const BlockRows& w, int64_t n, const void* rows, int64_t x_stride, int64_t m, int64_t k, float* out,
           int64_t out_stride, bool accumulate) {
  const BlockX x{static_cast<const char*>(rows), x_stride, Quant::groups(k)};
  with_code(w.code, [&](auto code) { plain_gemm<code.value>(w, n, x, m, k, out, out_stride, accumulate); });
}

}  // namespace
