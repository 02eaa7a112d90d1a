// Products with weights in blocks, as files hold them (base/blocks.h): the values of codes, and the arithmetic of a product. Sums of
// codes are integers, and the float32 operations around them have a fixed order, so every instruction set gives the same bits, in any
// batch.
//
// Values, d and dmin float16, T a table of 16 bytes, e an exponent. Bytes and order of the columns: blocks_decode_inl.h.
//   Q8_0 d q   Q4_0 d (q - 8)   IQ4_NL d T[q]   MXFP4 and mxfp4 2^(e - 128) T[q]   int4 s (q - zero)   int8 s q
//   Q4_K, Q5_K d sc q - dmin m   Q6_K d sc (q - 32)   IQ4_XS d sc T[q]     sc and m: integers of 32 (Q6_K: 16) columns
// The product takes a row of weights as codes c, signed bytes, with a float32 scale s for each run of 32 columns, or with steps: an
// integer for each 16 columns and a float32 scale for each group of 128. Codes that need no sign have instead a float32 minimum for
// each run, which is taken off: Q4_0 8 d, MXFP4 12 2^(e - 128), int4 s zero. int4 and int8 have steps, all 1, where a group of the file
// is whole groups of 128 columns; MXFP4 has them where exponents are close to each other, and no bit depends on that.
//
// A row of x enters as in quant.h: signed bytes q with a scale per group of 128 columns. Its minimums' factors are, for each run, the
// sum of q times that scale. The packed row is: its bytes, K padded with zeros to 128; the scales; the factors.
//
// A product is the sum of eight lanes. Lane l takes columns 4 l .. 4 l + 3 of each run r: p[r][l] is the sum of c q over them.
//   group g, runs r = 4 g .. 4 g + 3, float32, left to right:
//     scales:  t = p[0] s[0] + p[1] s[1] + p[2] s[2] + p[3] s[3]
//     steps:   t = float(sum over r of p[r] step[r][l / 4]) * scale, of an exact integer below 2^24
//   lane[l] = sum over g, ascending, of t * (scale of x)
//   low[r mod 8] = sum over r, ascending, of minimum[r] * factor[r]
// Sums of products are fused multiply-adds, one after the other.
//   out = fold(lane) - fold(low), fold(a) = ((a0 + a4) + (a2 + a6)) + ((a1 + a5) + (a3 + a7))
#pragma once
#include <cstdint>

#include "backend/cpu/kernels/quant.h"
#include "base/blocks.h"

namespace lynx_rt::cpu {

struct Blocks {
  static constexpr int64_t kRun = 32;  // columns
  static constexpr int64_t kGroup = Quant::kGroup;
  static constexpr int64_t kGroupRuns = kGroup / kRun;

  // Bytes of a packed row of x. The number of groups says where its scales and factors are.
  static constexpr int64_t x_bytes(int64_t k) { return round_up(Quant::groups(k) * kXGroupBytes, Quant::kLine); }
  static constexpr int64_t x_groups(int64_t x_bytes) { return x_bytes / kXGroupBytes; }  // padding is less than a group
  static const float* x_scales(const char* row, int64_t groups) { return reinterpret_cast<const float*>(row + groups * kGroup); }
  static const float* x_factors(const char* row, int64_t groups) { return x_scales(row, groups) + groups; }

 private:
  static constexpr int64_t kXGroupBytes = kGroup + 4 + 4 * kGroupRuns;
};

}  // namespace lynx_rt::cpu
