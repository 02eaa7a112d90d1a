// The loops over the vocabulary of a draw (sampling.h). One definition is compiled for each instruction set. Each token takes plain
// operations in one order, never contracted, so the bits are the same on all. Internal linkage: see simd_scalar.h.
#pragma once
#include <bit>
#include <cstdint>

namespace lynx_rt {

struct MassRule {
  float largest;   // logit of the row
  double slope;    // log2(e) / temperature
  double one;      // the weight 1 as a mass: a power of two, 2^45 at most
  uint64_t least;  // smaller masses count as 0
};

// Logits as integers of the same order: -NaN, -inf, .., -0, +0, .., inf, NaN.
struct KeyRange {
  int32_t min, max;
};

struct DrawKernels {
  KeyRange (*range)(const float* logits, int64_t n);
  // mass[i] = exp((logits[i] - largest) / temperature) in units of 1 / one, rounded to an integer; returns their sum.
  uint64_t (*masses)(const MassRule& rule, const float* logits, int64_t n, uint64_t* mass);
  // bin[i] = (largest - logits[i]) * bins_per_logit, rounded down, `last` where it is more.
  void (*bins)(float largest, float bins_per_logit, int32_t last, const float* logits, int64_t n, int16_t* bin);
};

namespace {

inline int32_t rising_key(float logit) {
  const int32_t bits = std::bit_cast<int32_t>(logit);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

inline KeyRange key_range(const float* logits, int64_t n) {
  KeyRange range{INT32_MAX, INT32_MIN};
  for (int64_t i = 0; i < n; ++i) {
    const int32_t key = rising_key(logits[i]);
    range.min = key < range.min ? key : range.min;
    range.max = key > range.max ? key : range.max;
  }
  return range;
}

// Let y = (largest - logit) * slope, n = -y rounded to an integer, r = -y - n. Then 2^-y = 2^n * 2^r, and 2^r is computed by the
// Taylor series of exp(r ln 2) through r^11. The error of a weight before it is rounded to an integer has three parts: the series,
// 0.3466^12 / 12! < 2^-47; its operations, < 2^-51; and y, four roundings of 2^-53 relative, scaled by y ln(2) 2^-y, < 2^-52. With
// the rounding by 1/2 unit they are less than 2^-45. From y = 64 on, infinity included, the mass is 0.
inline uint64_t token_masses(const MassRule& rule, const float* logits, int64_t n, uint64_t* mass) {
  constexpr double kRound = 0x1.8p52;  // x + kRound rounds x to an integer, which is in the mantissa's lowest bits
  constexpr double kWhole = 0x1.0p52;  // x + kWhole does so for x in 0 .. 2^52, and the mantissa has no other bits
  const double largest = double(rule.largest), slope = rule.slope, least = double(rule.least) + kWhole;
  const uint64_t one = std::bit_cast<uint64_t>(rule.one);
  uint64_t sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    double y = (largest - double(logits[i])) * slope;
    y = y < 64.0 ? y : 64.0;
    const double rounded = kRound - y, r = (kRound - rounded) - y;
    double p = 0x1.e8cac7351bb25p-32;  // ln(2)^k / k!
    p = p * r + 0x1.e4cf5158b8ecap-28;
    p = p * r + 0x1.b5253d395e7c4p-24;
    p = p * r + 0x1.62c0223a5c824p-20;
    p = p * r + 0x1.ffcbfc588b0c7p-17;
    p = p * r + 0x1.430912f86c787p-13;
    p = p * r + 0x1.5d87fe78a6731p-10;
    p = p * r + 0x1.3b2ab6fba4e77p-7;
    p = p * r + 0x1.c6b08d704a0c0p-5;
    p = p * r + 0x1.ebfbdff82c58fp-3;
    p = p * r + 0x1.62e42fefa39efp-1;
    p = p * r + 1.0;
    const uint64_t scale = (std::bit_cast<uint64_t>(rounded) << 52) + one;  // 2^n * one: n adds to the exponent
    const double whole = p * std::bit_cast<double>(scale) + kWhole;
    mass[i] = std::bit_cast<uint64_t>(whole >= least ? whole : kWhole) - std::bit_cast<uint64_t>(kWhole);
    sum += mass[i];
  }
  return sum;
}

inline void token_bins(float largest, float bins_per_logit, int32_t last, const float* logits, int64_t n, int16_t* bin) {
  const float end = float(last);
  for (int64_t i = 0; i < n; ++i) {
    const float at = (largest - logits[i]) * bins_per_logit;
    bin[i] = int16_t(int32_t(at < end ? at : end));
  }
}

constexpr DrawKernels kDrawKernels{key_range, token_masses, token_bins};

}  // namespace
}  // namespace lynx_rt
