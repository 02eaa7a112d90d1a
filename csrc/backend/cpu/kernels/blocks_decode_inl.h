// Decodes rows of weights in blocks (base/blocks.h) to the form that their product takes (blocks.h).
//
// A class V has a register of 32 codes, and:
//   load(p)          32 bytes
//   halves(p)        16 bytes: their lower halves, then their upper halves
//   pairs(p)         16 bytes: the lower and the upper half of each in turn
//   bits(p, s, m)    32 bytes: m & byte >> s
//   upper(c, b)      c | b << 4
//   look_up(c, t)    t[c], of a table of 16 bytes
//   store(p, c)
//   half_float(p)    the half precision number at p
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>

#include "backend/cpu/kernels/blocks.h"

namespace {

using lynx_rt::BlockCode;
using lynx_rt::BlockRows;
using lynx_rt::ScaleType;
using lynx_rt::cpu::Blocks;

constexpr int64_t kRun = Blocks::kRun, kGroup = Blocks::kGroup, kGroupRuns = Blocks::kGroupRuns;
constexpr int64_t kChunk = 2048;  // columns of a row that are decoded at a time

constexpr int kMxfp4Zero = 12;
constexpr int8_t kMxfp4[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};  // 12 + twice the value
constexpr int8_t kIq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// A part of a row of weights.
struct Decoded {
  alignas(64) int8_t codes[kChunk];  // from which a run's zero is still to be taken
  alignas(64) int32_t zeros[kChunk / kRun];
  alignas(64) float scales[kChunk / kRun];          // without steps
  alignas(64) int32_t steps[2][kChunk / kRun];      // of the first and the last 16 columns of each run
  alignas(64) int32_t minimums[kChunk / kRun];      // with group_minimums, of Q4_K and Q5_K
  alignas(64) float group_scales[kChunk / kGroup];  // with steps
  alignas(64) float group_minimums[kChunk / kGroup];
  bool has_steps;
};

constexpr bool is_mxfp4(BlockCode code) { return code == BlockCode::kMxfp4 || code == BlockCode::kGroupedMxfp4; }
constexpr bool is_grouped(BlockCode code) {
  return code == BlockCode::kGroupedMxfp4 || code == BlockCode::kGroupedInt4 || code == BlockCode::kGroupedInt8;
}
// Blocks of 256 columns have steps; grouped int4 and int8 may have them.
constexpr bool always_steps(BlockCode code) { return lynx_rt::block_size(code).columns == 256; }
constexpr bool may_have_steps(BlockCode code) { return code == BlockCode::kGroupedInt4 || code == BlockCode::kGroupedInt8; }
constexpr bool has_minimums(BlockCode code) { return code == BlockCode::kQ4_K || code == BlockCode::kQ5_K; }
// The zero of all codes of a format, which is taken off; grouped int4 has zeros of its own.
constexpr int common_zero(BlockCode code) {
  return code == BlockCode::kQ4_0 ? 8 : code == BlockCode::kQ6_K ? 32 : is_mxfp4(code) ? kMxfp4Zero : 0;
}

template <class T>
inline T read(const uint8_t* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// 2^(e - 128)
inline float power(uint8_t e) { return std::bit_cast<float>(e < 2 ? 0x00200000u << e : uint32_t(e - 1) << 23); }

template <class V>
inline float scale_at(ScaleType type, const uint8_t* scales, int64_t i) {
  switch (type) {
    case ScaleType::kF32: return read<float>(scales + 4 * i);
    case ScaleType::kBF16: return std::bit_cast<float>(uint32_t(read<uint16_t>(scales + 2 * i)) << 16);
    case ScaleType::kF16: return V::half_float(scales + 2 * i);
    case ScaleType::kExponent: return power(scales[i]);
  }
  return 0;
}

// Runs with a scale each.
template <class V, BlockCode Code>
inline void decode_runs(const uint8_t* b, int64_t runs, Decoded& out) {
  for (int64_t r = 0; r < runs; ++r, b += lynx_rt::block_size(Code).bytes) {
    out.scales[r] = Code == BlockCode::kMxfp4 ? power(b[0]) : V::half_float(b);
    V::store(out.codes + kRun * r, Code == BlockCode::kQ8_0     ? V::load(b + 2)
                                   : Code == BlockCode::kQ4_0   ? V::halves(b + 2)
                                   : Code == BlockCode::kIQ4_NL ? V::look_up(V::halves(b + 2), kIq4)
                                                                : V::look_up(V::halves(b + 1), kMxfp4));
  }
}

// Runs of grouped codes, from column `begin` of the row.
template <class V, BlockCode Code>
inline void decode_grouped(const BlockRows& rows, int64_t row, int64_t begin, int64_t runs, Decoded& out) {
  constexpr int64_t kBytes = lynx_rt::block_size(Code).bytes;
  const uint8_t* b = static_cast<const uint8_t*>(rows.data) + row * rows.row_bytes + begin / kRun * kBytes;
  const uint8_t* scales = static_cast<const uint8_t*>(rows.scales) + row * rows.scale_row_bytes;
  const uint8_t* zeros = rows.zeros ? static_cast<const uint8_t*>(rows.zeros) + row * rows.zero_row_bytes : nullptr;
  const int64_t group_runs = rows.group / kRun, first = begin / kRun;
  out.has_steps = may_have_steps(Code) && rows.group % kGroup == 0;
  for (int64_t r = 0; r < runs;) {
    const int64_t g = (first + r) / group_runs, end = (g + 1) * group_runs - first < runs ? (g + 1) * group_runs - first : runs;
    const float scale = scale_at<V>(rows.scale_type, scales, g);
    for (; r < end; ++r, b += kBytes) {
      V::store(out.codes + kRun * r, Code == BlockCode::kGroupedInt8   ? V::load(b)
                                     : Code == BlockCode::kGroupedInt4 ? V::pairs(b)
                                                                       : V::look_up(V::pairs(b), kMxfp4));
      out.scales[r] = out.group_scales[r / kGroupRuns] = scale;
      if (Code == BlockCode::kGroupedInt4) out.zeros[r] = zeros ? zeros[g] : 8;
      out.steps[0][r] = out.steps[1][r] = 1;
    }
  }
}

// A block of 256 columns, whose first run is r.
template <class V, BlockCode Code>
inline void decode_super(const uint8_t* b, int64_t r, Decoded& out) {
  constexpr bool kFive = Code == BlockCode::kQ5_K, kSix = Code == BlockCode::kQ6_K;
  int8_t* codes = out.codes + kRun * r;
  const float d = V::half_float(kSix ? b + 208 : b);
  out.group_scales[r / kGroupRuns] = out.group_scales[r / kGroupRuns + 1] = d;
  if constexpr (has_minimums(Code)) {
    out.group_minimums[r / kGroupRuns] = out.group_minimums[r / kGroupRuns + 1] = V::half_float(b + 2);
    const uint32_t s0 = read<uint32_t>(b + 4), s1 = read<uint32_t>(b + 8), s2 = read<uint32_t>(b + 12);
    const uint32_t steps[2] = {s0 & 0x3f3f3f3fu, (s2 & 0x0f0f0f0fu) | (s0 >> 2 & 0x30303030u)};
    const uint32_t mins[2] = {s1 & 0x3f3f3f3fu, (s2 >> 4 & 0x0f0f0f0fu) | (s1 >> 2 & 0x30303030u)};
    uint8_t step[8], minimum[8];
    std::memcpy(step, steps, 8);
    std::memcpy(minimum, mins, 8);
    for (int i = 0; i < 8; ++i) out.steps[0][r + i] = out.steps[1][r + i] = step[i], out.minimums[r + i] = minimum[i];
    const uint8_t* q = b + (kFive ? 48 : 16);
    for (int i = 0; i < 8; ++i) {
      auto c = V::bits(q + 32 * (i / 2), i % 2 * 4, 15);
      if constexpr (kFive) c = V::upper(c, V::bits(b + 16, i, 1));
      V::store(codes + kRun * i, c);
    }
  } else if constexpr (kSix) {
    const int8_t* steps = reinterpret_cast<const int8_t*>(b + 192);
    for (int i = 0; i < 16; ++i) out.steps[i % 2][r + i / 2] = steps[i];
    for (int i = 0; i < 8; ++i) {
      const auto low = V::bits(b + i / 4 * 64 + i % 2 * 32, i % 4 / 2 * 4, 15),
                 high = V::bits(b + 128 + i / 4 * 32, i % 4 * 2, 3);
      V::store(codes + kRun * i, V::upper(low, high));
    }
  } else {
    const uint16_t upper = read<uint16_t>(b + 2);
    for (int i = 0; i < 8; ++i) {
      const int step = int((b[4 + i / 2] >> (i % 2 * 4) & 15) | (upper >> (2 * i) & 3) << 4) - 32;
      out.steps[0][r + i] = out.steps[1][r + i] = step;
      V::store(codes + kRun * i, V::look_up(V::halves(b + 8 + 16 * i), kIq4));
    }
  }
}

// Decodes columns [begin, begin + n) of a row; begin is a multiple of kChunk, n one of the columns of a block.
template <class V, BlockCode Code>
inline void decode(const BlockRows& rows, int64_t row, int64_t begin, int64_t n, Decoded& out) {
  constexpr lynx_rt::BlockSize kSize = lynx_rt::block_size(Code);
  const int64_t runs = n / kRun;
  out.has_steps = always_steps(Code);
  for (int64_t r = 0; r < runs; ++r) out.zeros[r] = common_zero(Code);
  const uint8_t* b = static_cast<const uint8_t*>(rows.data) + row * rows.row_bytes + begin / kSize.columns * kSize.bytes;
  if constexpr (is_grouped(Code))
    decode_grouped<V, Code>(rows, row, begin, runs, out);
  else if constexpr (always_steps(Code))
    for (int64_t r = 0; r < runs; r += 8, b += kSize.bytes) decode_super<V, Code>(b, r, out);
  else
    decode_runs<V, Code>(b, runs, out);
}

// The values of a decoded part, rounded once.
template <BlockCode Code>
inline void values(const Decoded& part, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    const int64_t r = i / kRun, g = i / kGroup;
    const float code = float(part.codes[i] - part.zeros[r]);
    if constexpr (always_steps(Code)) {
      const float value = float(part.steps[i % kRun / 16][r]) * part.group_scales[g] * code;
      out[i] = has_minimums(Code) ? value - part.group_minimums[g] * float(part.minimums[r]) : value;
    } else {
      out[i] = code * part.scales[r];
    }
  }
}

}  // namespace
