// The values of weights in blocks (base/blocks.h), in float32 or rounded.
//
// A class V is one of blocks_decode_inl.h, and has
//   fp8(codes, n, bits, out)    bfloat16 of n codes of FP8, a multiple of 32; returns whether one of them is NaN
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>

#include "backend/cpu/kernels/blocks_decode_inl.h"

namespace {

using lynx_rt::DType;

constexpr int64_t kFp8Ahead = 4096;  // bytes between the prefetch of a line and its use

constexpr float e4m3(int code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  float v = float(exponent ? 8 + mantissa : mantissa);
  for (int e = exponent ? exponent : 1; e < 10; ++e) v /= 2;
  for (int e = 10; e < exponent; ++e) v *= 2;
  if ((code & 127) == 127) v = __builtin_nanf("");
  return code & 128 ? -v : v;
}

struct E4m3 {
  float values[256];
};
constexpr E4m3 kE4m3 = [] {
  E4m3 table{};
  for (int code = 0; code < 256; ++code) table.values[code] = e4m3(code);
  return table;
}();

// f32_to_bf16() without branches. A NaN stays NaN: one bit of its mantissa is set.
inline uint16_t to_bf16(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1)) >> 16, nan = (u >> 16) | 0x40;
  return uint16_t((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

inline const uint8_t* scales_of(const BlockRows& w, int64_t row) {
  return static_cast<const uint8_t*>(w.scales) + (w.first_scale_row + row) / w.scale_rows * w.scale_row_bytes;
}

template <class V>
inline float fp8_scale(const BlockRows& w, const uint8_t* scales, int64_t group) {
  const float scale = scale_at<V>(w.scale_type, scales, group);
  return w.scale_type == ScaleType::kExponent ? 2 * scale : scale;  // 2^(e - 127)
}

template <class V>
void fp8_values(const BlockRows& w, int64_t row, int64_t begin, int64_t columns, float* out) {
  const uint8_t* codes = static_cast<const uint8_t*>(w.data) + row * w.row_bytes + begin;
  for (int64_t i = 0; i < columns;) {
    const int64_t g = (begin + i) / w.group, end = (g + 1) * w.group - begin < columns ? (g + 1) * w.group - begin : columns;
    const float scale = fp8_scale<V>(w, scales_of(w, row), g);
    for (; i < end; ++i) out[i] = kE4m3.values[codes[i]] * scale;
  }
}

// A code as a type, for functions that are compiled for each code.
template <BlockCode Code>
struct CodeOf {
  static constexpr BlockCode value = Code;
};

// Calls run(CodeOf<code>()) for a code that gemm() multiplies.
template <class Run>
inline void with_code(BlockCode code, const Run& run) {
  switch (code) {
    case BlockCode::kQ8_0: return run(CodeOf<BlockCode::kQ8_0>());
    case BlockCode::kQ4_0: return run(CodeOf<BlockCode::kQ4_0>());
    case BlockCode::kQ4_K: return run(CodeOf<BlockCode::kQ4_K>());
    case BlockCode::kQ5_K: return run(CodeOf<BlockCode::kQ5_K>());
    case BlockCode::kQ6_K: return run(CodeOf<BlockCode::kQ6_K>());
    case BlockCode::kIQ4_NL: return run(CodeOf<BlockCode::kIQ4_NL>());
    case BlockCode::kIQ4_XS: return run(CodeOf<BlockCode::kIQ4_XS>());
    case BlockCode::kMxfp4: return run(CodeOf<BlockCode::kMxfp4>());
    case BlockCode::kGroupedMxfp4: return run(CodeOf<BlockCode::kGroupedMxfp4>());
    case BlockCode::kGroupedInt4: return run(CodeOf<BlockCode::kGroupedInt4>());
    case BlockCode::kGroupedInt8: return run(CodeOf<BlockCode::kGroupedInt8>());
    case BlockCode::kGroupedFp8: return;
  }
}

// Columns [begin, begin + columns) of a row; begin is a multiple of kChunk, columns at most that.
template <class V>
void part_values(const BlockRows& w, int64_t row, int64_t begin, int64_t columns, float* out) {
  if (w.code == BlockCode::kGroupedFp8) return fp8_values<V>(w, row, begin, columns, out);
  with_code(w.code, [&](auto code) {
    Decoded part;
    decode<V, code.value>(w, row, begin, columns, part);
    values<code.value>(part, columns, out);
  });
}

template <class V>
void values_of(const BlockRows& w, int64_t row, int64_t k, float* out) {
  for (int64_t begin = 0; begin < k; begin += kChunk)
    part_values<V>(w, row, begin, k - begin < kChunk ? k - begin : kChunk, out + begin);
}

inline void round_values(float* v, int64_t n, DType dtype) {
  if (dtype == DType::kF32) return;
  for (int64_t i = 0; i < n; ++i)
    v[i] = dtype == DType::kBF16 ? std::bit_cast<float>(uint32_t(to_bf16(v[i])) << 16)
                                 : lynx_rt::f16_to_f32(lynx_rt::f32_to_f16(v[i]));
}

inline void store_values(const float* v, int64_t n, DType dtype, char* out) {
  if (dtype == DType::kF32) {
    std::memcpy(out, v, size_t(n) * 4);
    return;
  }
  uint16_t* to = reinterpret_cast<uint16_t*>(out);
  if (dtype == DType::kBF16)
    for (int64_t i = 0; i < n; ++i) to[i] = to_bf16(v[i]);
  else
    for (int64_t i = 0; i < n; ++i) to[i] = lynx_rt::f32_to_f16(v[i]);
}

// The products of the codes of FP8 with one scale, as bfloat16. A normal code m 2^e is the product with m moved by e in its exponent,
// since neither is rounded differently: entry 8 + m is that without an exponent. Entry m < 8 is that of a subnormal code.
struct Fp8Bits {
  alignas(16) uint8_t low[16], high[16];
  float scale;
  bool ok;  // no product leaves the normal range
};

inline void set_bits(float scale, Fp8Bits& out) {
  alignas(64) static constexpr float kValues[16] = {0, 0x1p-9f, 0x1p-8f, 0x1.8p-8f, 0x1p-7f, 0x1.4p-7f, 0x1.8p-7f, 0x1.cp-7f,
                                                    2, 2.25f,   2.5f,    2.75f,     3,       3.25f,     3.5f,      3.75f};
  constexpr uint32_t kExponent = 8 << 7;  // of the values from entry 8 on, in bfloat16
  const float size = __builtin_fabsf(scale);
  out.scale = scale;
  out.ok = size >= 0x1p-100f && size <= 0x1p+100f;
  alignas(64) uint32_t bits[16];
  for (int i = 0; i < 16; ++i) {
    const uint32_t u = std::bit_cast<uint32_t>(kValues[i] * scale);
    bits[i] = (u + 0x7fffu + ((u >> 16) & 1)) >> 16;
  }
  for (int i = 8; i < 16; ++i) bits[i] -= kExponent;
  for (int i = 0; i < 16; ++i) out.low[i] = uint8_t(bits[i]);
  for (int i = 0; i < 16; ++i) out.high[i] = uint8_t(bits[i] >> 8);
}

template <class V>
inline void fp8_group(const uint8_t* codes, int64_t n, const Fp8Bits& bits, uint16_t* out) {
  const int64_t whole = bits.ok ? n / kRun * kRun : 0;
  const bool nan = V::fp8(codes, whole, bits, out);
  for (int64_t i = nan ? 0 : whole; i < n; ++i) out[i] = to_bf16(kE4m3.values[codes[i]] * bits.scale);
}

template <class V>
void fp8_to_bf16(const BlockRows& w, int64_t n, int64_t k, char* out, int64_t out_stride) {
  constexpr int64_t kGroups = 64;  // whose tables are kept from row to row
  const int64_t groups = (k + w.group - 1) / w.group;
  Fp8Bits bits[kGroups];
  for (int64_t first = 0; first < groups; first += kGroups) {
    const int64_t count = groups - first < kGroups ? groups - first : kGroups;
    const uint8_t* of = nullptr;
    for (int64_t row = 0; row < n; ++row) {
      const uint8_t* scales = scales_of(w, row);
      if (scales != of)
        for (int64_t g = 0; g < count; ++g) set_bits(fp8_scale<V>(w, scales, first + g), bits[g]);
      of = scales;
      const uint8_t* codes = static_cast<const uint8_t*>(w.data) + row * w.row_bytes;
      uint16_t* to = reinterpret_cast<uint16_t*>(out + row * out_stride);
      for (int64_t g = 0, begin = first * w.group; g < count; ++g, begin += w.group)
        fp8_group<V>(codes + begin, k - begin < w.group ? k - begin : w.group, bits[g], to + begin);
    }
  }
}

template <class V>
void decode_rows(const BlockRows& w, int64_t n, int64_t k, DType dtype, void* out, int64_t out_stride) {
  char* to = static_cast<char*>(out);
  const bool twice = w.product_dtype != DType::kF32 && w.product_dtype != dtype;
  if (w.code == BlockCode::kGroupedFp8 && dtype == DType::kBF16 && !twice) return fp8_to_bf16<V>(w, n, k, to, out_stride);
  for (int64_t row = 0; row < n; ++row, to += out_stride)
    for (int64_t begin = 0; begin < k; begin += kChunk) {
      const int64_t columns = k - begin < kChunk ? k - begin : kChunk;
      alignas(64) float v[kChunk];
      part_values<V>(w, row, begin, columns, v);
      if (twice) round_values(v, columns, w.product_dtype);
      store_values(v, columns, dtype, to + begin * lynx_rt::dtype_size(dtype));
    }
}

}  // namespace
