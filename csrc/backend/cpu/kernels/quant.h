// Products with quantised weights: the layout of a weight and of a row, and the arithmetic. It is in integers inside a group of
// columns, and the float32 operations between groups have a fixed order, so every instruction set gives the same bits, in any batch.
//
// A weight [N, K] is symmetric: value = (u - zero) * scale, u unsigned of 8 bits (zero 128) or 4 bits (zero 8), one float32 scale
// per row and group of kGroup columns. It is stored in panels of 16 rows, one after the other, so that a panel is contiguous in
// memory; N is padded to 16 and K to kGroup with zeros. A panel is, group by group:
//   16 scales, float32, one per row
//   8 bits: 32 lines of 64 bytes; line q holds columns 4 q .. 4 q + 3 of each row: byte 4 r + c is row r, column 4 q + c
//   4 bits: 16 lines; the low halves of line l are line 2 l of the 8 bits, the high halves line 2 l + 1
//
// 8 bits: scale = amax / 127, where amax is the largest |value| of the group. 4 bits: the lowest step, -8, is used too, so
// scale = amax / 8 where -amax is a value of the group, else -amax / 8; a value that rounds to 8 becomes 7.
//
// A row of x enters as signed bytes with a scale per group: amax = the largest |x| of the group, scale = amax / 127,
// q = rint(x * (127 / amax)), ties to even. A group with amax below 1e-30 becomes zeros; a group with a non-finite value has a scale
// of NaN. The packed row is: its bytes, K padded to kGroup; the scales, float32; for each group the sum of its bytes, int32.
//
//   out[j, n] = sum over groups g, ascending, float32: float(sum (u - zero) * q) * (weight scale * row scale)
//
// The integer sum is below 128 * 127 * 128 < 2^24 and so exact as float32.
#pragma once
#include <cstdint>

#include "base/panels.h"
#include "base/tensor.h"
#include "base/types.h"

namespace lynx_rt::cpu {

struct Quant : Panels {
  static constexpr int64_t kLine = 64;  // bytes

  // Bytes of a packed row. The number of groups says where its scales and sums are.
  static constexpr int64_t x_bytes(int64_t k) { return round_up(groups(k) * kXGroupBytes, kLine); }
  static constexpr int64_t x_groups(int64_t x_bytes) { return x_bytes / kXGroupBytes; }  // padding is less than a group
  static const float* x_scales(const char* row, int64_t groups) { return reinterpret_cast<const float*>(row + groups * kGroup); }
  static const int32_t* x_sums(const char* row, int64_t groups) {
    return reinterpret_cast<const int32_t*>(row + groups * (kGroup + 4));
  }

 private:
  static constexpr int64_t kXGroupBytes = kGroup + 4 + 4;
};

}  // namespace lynx_rt::cpu
