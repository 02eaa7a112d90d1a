// Element types, conversions and checked size arithmetic.
#pragma once
#include <bit>
#include <cstdint>
#include <string_view>

#include "base/error.h"

namespace lynx_rt {

enum class DType : uint8_t { kF32, kBF16, kF16 };

constexpr int64_t dtype_size(DType t) { return t == DType::kF32 ? 4 : 2; }
constexpr const char* dtype_name(DType t) { return t == DType::kF32 ? "float32" : t == DType::kBF16 ? "bfloat16" : "float16"; }

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Returns a * b for sizes; throws kInvalidArgument naming `what` where a factor is negative or the product overflows int64.
inline int64_t checked_mul(int64_t a, int64_t b, const char* what) {
  int64_t r;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &r)) invalid(what, "size overflows: ", a, " * ", b);
  return r;
}

inline float bf16_to_f32(uint16_t v) { return std::bit_cast<float>(uint32_t(v) << 16); }

// Rounds to nearest even, as vcvtneps2bf16 does for normal numbers; NaN stays NaN.
inline uint16_t f32_to_bf16(float f) {
  uint32_t u = std::bit_cast<uint32_t>(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return uint16_t((u >> 16) | 0x40);
  return uint16_t((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

// Convert IEEE half precision; f32_to_f16() rounds to nearest even.
float f16_to_f32(uint16_t v);
uint16_t f32_to_f16(float f);

}  // namespace lynx_rt
