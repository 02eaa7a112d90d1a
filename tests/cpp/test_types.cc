// Compares csrc/base/types.h with arithmetic in double: all 65536 patterns of each 16-bit type, and the rounding between neighbours.
#include "base/types.h"

#include <cmath>
#include <limits>

#include "check.h"

using namespace lynx_rt;

namespace {

struct Format {
  const char* name;
  int exponent_bits, mantissa_bits;
  float (*widen)(uint16_t);
  uint16_t (*narrow)(float);
};

constexpr Format kFormats[] = {{"bfloat16", 8, 7, bf16_to_f32, f32_to_bf16}, {"float16", 5, 10, f16_to_f32, f32_to_f16}};

// Returns the value of a pattern by the definition of IEEE 754 binary formats.
double value_of(const Format& f, uint32_t bits) {
  int bias = (1 << (f.exponent_bits - 1)) - 1;
  int exponent = int(bits >> f.mantissa_bits) & ((1 << f.exponent_bits) - 1);
  double mantissa = double(bits & ((1u << f.mantissa_bits) - 1)) / double(1 << f.mantissa_bits);
  double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == (1 << f.exponent_bits) - 1)
    return mantissa == 0 ? sign * std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  return sign * (exponent == 0 ? std::ldexp(mantissa, 1 - bias) : std::ldexp(1 + mantissa, exponent - bias));
}

void test_every_pattern() {
  for (const Format& f : kFormats) {
    int wrong_value = 0, wrong_return = 0, nans = 0;
    for (uint32_t bits = 0; bits < 65536; ++bits) {
      double expected = value_of(f, bits);
      float got = f.widen(uint16_t(bits));
      if (std::isnan(expected)) {
        ++nans;
        wrong_value += !std::isnan(got);
        float back = f.widen(f.narrow(got));
        wrong_return += !std::isnan(back) || std::signbit(back) != std::signbit(got);
      } else {
        wrong_value += double(got) != expected || std::signbit(got) != std::signbit(expected);
        wrong_return += f.narrow(got) != bits;
      }
    }
    CHECK_EQ(wrong_value, 0);
    CHECK_EQ(wrong_return, 0);
    CHECK_EQ(nans, 2 * ((1 << f.mantissa_bits) - 1));
  }
}

// The middle of two neighbours rounds to the even one, and the floats next to the middle round to the nearer one.
void test_rounding() {
  for (const Format& f : kFormats) {
    int wrong = 0;
    uint32_t infinity = uint32_t((1 << f.exponent_bits) - 1) << f.mantissa_bits;
    for (uint32_t bits = 0; bits < infinity; ++bits) {
      double low = value_of(f, bits), high = value_of(f, bits + 1);
      if (std::isinf(high)) high = low + (low - value_of(f, bits - 1));  // the next value if the exponent had no limit
      float middle = float((low + high) / 2);                            // exact: float32 has at least 13 more bits
      auto check = [&](float x, uint32_t expected) {
        wrong += f.narrow(x) != expected;
        wrong += f.narrow(-x) != (expected | 0x8000);
      };
      check(middle, bits + (bits & 1));
      check(std::nextafter(middle, 0.f), bits);
      check(std::nextafter(middle, INFINITY), bits + 1);
    }
    CHECK_EQ(wrong, 0);
    CHECK_EQ(f.narrow(std::numeric_limits<float>::infinity()), infinity);
    CHECK_EQ(f.narrow(-std::numeric_limits<float>::infinity()), infinity | 0x8000);
    CHECK_EQ(f.narrow(std::numeric_limits<float>::max()), infinity);
    CHECK_EQ(f.narrow(0.f), 0);
    CHECK_EQ(f.narrow(-0.f), 0x8000);
  }
  CHECK_EQ(f32_to_f16(std::numeric_limits<float>::denorm_min()), 0);
}

void test_sizes() {
  CHECK_EQ(dtype_size(DType::kF32), 4);
  CHECK_EQ(dtype_size(DType::kBF16), 2);
  CHECK_EQ(dtype_size(DType::kF16), 2);
  CHECK_EQ(std::string(dtype_name(DType::kBF16)), "bfloat16");
  CHECK_EQ(ceil_div(0, 4), 0);
  CHECK_EQ(ceil_div(1, 4), 1);
  CHECK_EQ(ceil_div(4, 4), 1);
  CHECK_EQ(round_up(5, 4), 8);
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  CHECK_EQ(checked_mul(0, kMax, "x"), 0);
  CHECK_EQ(checked_mul(1, kMax, "x"), kMax);
  CHECK_EQ(checked_mul(3037000499, 3037000499, "x"), 9223372030926249001);
  CHECK_THROWS(checked_mul(3037000500, 3037000500, "kv_cache"), ErrorCode::kInvalidArgument, "kv_cache",
               {"3037000500 * 3037000500"});
  CHECK_THROWS(checked_mul(2, kMax / 2 + 1, "x"), ErrorCode::kInvalidArgument, "x", {"overflows"});
  CHECK_THROWS(checked_mul(-1, 2, "x"), ErrorCode::kInvalidArgument, "x", {"-1 * 2"});
  CHECK_THROWS(checked_mul(2, -1, "x"), ErrorCode::kInvalidArgument, "x", {"2 * -1"});
}

}  // namespace

int main() {
  test_every_pattern();
  test_rounding();
  test_sizes();
  return check::result("test_types");
}
