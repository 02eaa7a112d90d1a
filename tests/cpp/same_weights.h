// Compares weights in memory.
#pragma once
#include <cstring>

#include "base/panels.h"
#include "base/tensor.h"

// Whether two views have the same form and bytes; between rows there may be other gaps.
inline bool same_weights(const lynx_rt::WeightView& a, const lynx_rt::WeightView& b) {
  using namespace lynx_rt;
  if (a.rows != b.rows || a.cols != b.cols || a.format != b.format || a.dtype != b.dtype) return false;
  if (a.rows == 0) return a.empty() && b.empty();
  const auto rows_equal = [&](const void* x, int64_t x_row, const void* y, int64_t y_row, int64_t rows, int64_t bytes) {
    for (int64_t r = 0; r < rows; ++r)
      if (std::memcmp(static_cast<const char*>(x) + r * x_row, static_cast<const char*>(y) + r * y_row, size_t(bytes)) != 0)
        return false;
    return true;
  };
  if (a.format != QuantFormat::kBlocks) {
    const bool padded = a.format != QuantFormat::kPlain;
    return a.row_bytes() == b.row_bytes() && rows_equal(a.data, a.row_bytes(), b.data, b.row_bytes(),
                                                        padded ? round_up(a.rows, Panels::kPanel) : a.rows, a.row_bytes());
  }
  const BlockRows &x = a.blocks, &y = b.blocks;
  const BlockSize size = block_size(x.code);
  if (x.code != y.code || !x.scales != !y.scales || !x.zeros != !y.zeros) return false;
  if (!rows_equal(x.data, x.row_bytes, y.data, y.row_bytes, a.rows, a.cols / size.columns * size.bytes)) return false;
  if (!x.scales) return true;
  if (x.group != y.group || x.scale_type != y.scale_type || x.product_dtype != y.product_dtype) return false;
  const int64_t groups = ceil_div(a.cols, x.group);
  for (int64_t r = 0; r < a.rows; ++r)
    if (std::memcmp(from_row(x, r).scales, from_row(y, r).scales, size_t(groups * scale_size(x.scale_type))) != 0) return false;
  return (!x.zeros || rows_equal(x.zeros, x.zero_row_bytes, y.zeros, y.zero_row_bytes, a.rows, groups));
}
