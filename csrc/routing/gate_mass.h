// Softmax gates as integers, so that their sums depend neither on the order nor on the device. The bits are the same wherever
// double precision is IEEE and products are not contracted.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define LYNX_HOST_DEVICE __host__ __device__
#else
#define LYNX_HOST_DEVICE
#endif

namespace lynx_rt {

inline constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

// Returns exp(r) for r in (-ln 2, 0]. The error of the series through r^12 is below 0.7^13 / 13! < 2^-38.
LYNX_HOST_DEVICE inline double exp_series(double r) {
  double p = 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1;
  p = p * r + 1;
  return p;
}

// Returns exp(-gap) for gap >= 0 in units of 2^-32, to one unit; 0 where it is 2^-32 or less.
LYNX_HOST_DEVICE inline uint64_t exp_mass(double gap) {
  const double power = gap * kLog2E;
  if (!(power < 32)) return 0;
  const int whole = int(power);
  return uint64_t(exp_series((whole - power) * kLn2) * double(uint64_t{1} << (32 - whole)) + 0.5);
}

// Returns the gate of an expert in units of 2^-30, rounded down: its exp_mass over the sum of those of all experts of the row.
LYNX_HOST_DEVICE inline uint64_t gate_mass(uint64_t mass, uint64_t sum) { return (mass << 30) / sum; }

}  // namespace lynx_rt
