// Products with weights in blocks, as files hold them (base/blocks.h): the values of codes, and the arithmetic of a product. Sums of
// codes are integers, and the float32 operations around them have a fixed order, so every instruction set gives the same bits, in any
// batch.
//
// Values, d and dmin float16, T a table of 16 bytes, e an exponent. Bytes and order of the columns: blocks_decode_inl.h.
//   Q8_0 d q   Q4_0 d (q - 8)   IQ4_NL d T[q]   MXFP4 and mxfp4 2^(e - 128) T[q]   int4 s (q - zero)   int8 s q
//   Q4_K, Q5_K d sc q - dmin m   Q6_K d sc (q - 32)   IQ4_XS d sc T[q]     sc and m: integers of 32 (Q6_K: 16) columns
// So a column is an integer c, which is q, q less a zero, or T[q], with a float32 scale s for each run of 32 columns, or with steps: an
// integer for each 16 columns and a float32 scale for each group of 128. Steps of int4 and int8, whose groups in the file are whole
// groups of 128 columns, are all 1.
//
// A row of x enters as in quant.h: signed bytes q with a scale per group of 128 columns. The packed row is: its bytes, K padded with
// zeros to 128; the scales; the sums of each 16 bytes, int16.
//
// With p[r] the sum of c q over run r, an exact integer, a product is the sum over the groups g, ascending, of t[g] * (scale of x).
// For the runs r of the group, at most four, float32, left to right:
//   scales:  t = p[0] s[0] + p[1] s[1] + p[2] s[2] + p[3] s[3]
//   steps:   t = float(sum of c q step) d - float(sum over r of m[r] * (sum of q)) dmin, where the second term is that of Q4_K and Q5_K
// Additions of products are fused. Integers are below 2^31: 128 * 127 * 32 * 128.
#pragma once
#include <cstdint>

#include "backend/cpu/kernels/quant.h"
#include "base/blocks.h"

namespace lynx_rt::cpu {

struct Blocks {
  static constexpr int64_t kRun = 32;  // columns
  static constexpr int64_t kGroup = Quant::kGroup;
  static constexpr int64_t kGroupRuns = kGroup / kRun;

  // Bytes of a packed row of x. The number of groups says where its scales and sums are.
  static constexpr int64_t x_bytes(int64_t k) { return round_up(Quant::groups(k) * kXGroupBytes, Quant::kLine); }
  static constexpr int64_t x_groups(int64_t x_bytes) { return x_bytes / kXGroupBytes; }  // padding is less than a group
  static const float* x_scales(const char* row, int64_t groups) { return reinterpret_cast<const float*>(row + groups * kGroup); }
  // Two for each run, its first 16 columns' and its last 16 columns'.
  static const int16_t* x_sums(const char* row, int64_t groups) {
    return reinterpret_cast<const int16_t*>(x_scales(row, groups) + groups);
  }

 private:
  static constexpr int64_t kXGroupBytes = kGroup + 4 + 4 * kGroupRuns;
};

}  // namespace lynx_rt::cpu
