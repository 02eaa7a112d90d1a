// Sizes of the weights that the CPU backend quantises: panels of rows, cut into groups of columns. Layout and arithmetic:
// backend/cpu/kernels/quant.h.
#pragma once
#include <cstdint>

#include "base/types.h"

namespace lynx_rt {

struct Panels {
  static constexpr int64_t kGroup = 128;  // columns
  static constexpr int64_t kPanel = 16;   // rows of a weight

  // Bytes of a group of a panel: its scales and columns.
  static constexpr int64_t group_bytes(int bits) { return kPanel * (4 + kGroup * bits / 8); }
  static constexpr int64_t groups(int64_t columns) { return ceil_div(columns, kGroup); }
  // Bytes of a panel by its rows.
  static constexpr int64_t row_bytes(int64_t columns, int bits) { return groups(columns) * group_bytes(bits) / kPanel; }
};

}  // namespace lynx_rt
