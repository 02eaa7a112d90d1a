// Non-owning views. Whoever hands out a view keeps the memory alive.
#pragma once
#include <cstdint>

#include "base/types.h"

namespace lynx_rt {

// A weight matrix [rows, cols], row-major with cols contiguous (the checkpoint's [out, in]); a vector has rows = 1.
struct WeightView {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;

  bool empty() const { return data == nullptr; }
  int64_t row_bytes() const { return cols * dtype_size(dtype); }
  int64_t bytes() const { return rows * row_bytes(); }
  const void* row(int64_t r) const { return static_cast<const char*>(data) + r * row_bytes(); }
};

}  // namespace lynx_rt
