// Random quantised weights for tests of products, and the values that they stand for.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "backend/cuda/gemm/packed.h"
#include "device_array.h"

namespace gemm {

using namespace lynx_rt;

inline std::mt19937 generator(31);
inline int random_below(int n) { return int(generator() % unsigned(n)); }

// A kind of quantised weights.
struct Kind {
  BlockCode code;
  ScaleType scale_type;
  int group;
  bool zeros = false;
};
inline const std::vector<Kind> kKinds = {
    {BlockCode::kGroupedInt4, ScaleType::kBF16, 32},      {BlockCode::kGroupedInt4, ScaleType::kBF16, 64, true},
    {BlockCode::kGroupedInt4, ScaleType::kF16, 128},      {BlockCode::kGroupedInt4, ScaleType::kF16, 32, true},
    {BlockCode::kGroupedMxfp4, ScaleType::kExponent, 32}, {BlockCode::kGroupedInt8, ScaleType::kF32, 96},
    {BlockCode::kGroupedInt8, ScaleType::kBF16, 1 << 20}, {BlockCode::kGroupedInt8, ScaleType::kF16, 32},
    {BlockCode::kGroupedFp8, ScaleType::kF32, 128},       {BlockCode::kGroupedFp8, ScaleType::kBF16, 1 << 20}};

// The value of a code of FP8: 2^(exponent - 7) (1 + mantissa / 8), or 2^-6 mantissa / 8.
inline float e4m3(int code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const float v = std::ldexp(float(exponent ? 8 + mantissa : mantissa), std::max(exponent, 1) - 10);
  return code & 128 ? -v : v;
}

// Random rows of a kind, and the values that bf16 has for them.
struct CodedMatrix {
  Kind kind;
  int rows, columns, groups;
  std::vector<uint8_t> codes, scales, zeros;
  std::vector<float> values;

  CodedMatrix(const Kind& k, int num_rows, int num_columns, float scale = 1)
      : kind(k), rows(num_rows), columns(num_columns), groups((num_columns + k.group - 1) / k.group) {
    const bool fp8 = kind.code == BlockCode::kGroupedFp8, eight = fp8 || kind.code == BlockCode::kGroupedInt8;
    const int size = int(scale_size(kind.scale_type));
    codes.resize(size_t(rows) * columns / (eight ? 1 : 2));
    for (uint8_t& c : codes) {
      c = uint8_t(generator());
      if (fp8 && (c & 127) == 127) c = 0;  // NaN
    }
    std::vector<float> factors;
    for (int i = 0; i < rows * groups; ++i) {
      const uint32_t exponent = 122 + generator() % 6;
      float f = random_below(9) ? std::ldexp(1.0f + float(generator() % 4096) / 4096, int(exponent) - 130) * scale : 0.0f;
      if (random_below(2)) f = -f;
      const uint16_t half = kind.scale_type == ScaleType::kBF16 ? f32_to_bf16(f) : f32_to_f16(f);
      if (kind.scale_type == ScaleType::kBF16) f = bf16_to_f32(half);
      if (kind.scale_type == ScaleType::kF16) f = f16_to_f32(half);
      if (kind.scale_type == ScaleType::kExponent) f = std::ldexp(1.0f, int(exponent) - 127);
      const uint8_t byte = uint8_t(exponent);
      const void* from = size == 4 ? static_cast<const void*>(&f) : size == 2 ? static_cast<const void*>(&half) : &byte;
      scales.insert(scales.end(), static_cast<const uint8_t*>(from), static_cast<const uint8_t*>(from) + size);
      if (kind.zeros) zeros.push_back(uint8_t(random_below(16)));
      factors.push_back(f);
    }
    constexpr float kE2m1[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < columns; ++c) {
        const size_t at = size_t(r) * columns + c, group = size_t(r) * groups + c / kind.group;
        const int code = eight ? int8_t(codes[at]) : codes[at / 2] >> (at % 2 * 4) & 15;
        float v = eight ? float(code) : float(code - (kind.zeros ? zeros[group] : 8));
        if (kind.code == BlockCode::kGroupedMxfp4) v = code & 8 ? -kE2m1[code & 7] : kE2m1[code & 7];
        if (fp8) v = e4m3(codes[at]);
        v *= factors[group];
        if (kind.scale_type == ScaleType::kF16) v = f16_to_f32(f32_to_f16(v));
        values.push_back(bf16_to_f32(f32_to_bf16(v)));
      }
  }
  int64_t code_bytes() const { return int64_t(columns) / (form_bits() == 8 ? 1 : 2); }
  int form_bits() const { return kind.code == BlockCode::kGroupedInt8 || kind.code == BlockCode::kGroupedFp8 ? 8 : 4; }
  int64_t scale_bytes() const { return groups * scale_size(kind.scale_type); }
  BlockRows blocks(const uint8_t* c, const uint8_t* s, const uint8_t* z) const {
    BlockRows rows{.code = kind.code, .data = c, .row_bytes = code_bytes(), .group = kind.group, .scale_type = kind.scale_type};
    rows.scales = s;
    rows.scale_row_bytes = scale_bytes();
    rows.zeros = kind.zeros ? z : nullptr;
    rows.zero_row_bytes = groups;
    return rows;
  }
  cuda::PackedForm form() const { return cuda::packed_form(blocks(codes.data(), scales.data(), zeros.data())); }

  // Packs pieces of `chunk` rows.
  void pack(void* to, int parts = 1, int part = 0, int chunk = 1 << 20) const {
    const DeviceVector<uint8_t> c(codes), s(scales), z(zeros);
    const BlockRows all = blocks(c.get(), s.get(), z.get());
    for (int begin = 0; begin < rows; begin += chunk)
      cuda::pack_codes(from_row(all, begin), begin, std::min(chunk, rows - begin), rows, columns, {to, parts, part}, {});
    cuda::synchronize({});
  }
};

}  // namespace gemm
