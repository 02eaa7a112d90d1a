// Non-owning views of weights. Whoever hands out a view keeps its memory alive.
#pragma once
#include <cstdint>

#include "base/blocks.h"
#include "base/types.h"

namespace lynx_rt {

// How the values of a weight lie in memory.
enum class QuantFormat : uint8_t {
  kPlain,  // as in the checkpoint: row-major, in WeightView::dtype
  kInt8,   // quantised by the CPU backend, in the form that its kernels read: backend/cpu/kernels/quant.h
  kInt4,
  kBlocks,  // as in the checkpoint, where it is quantised: WeightView::blocks
  kPacked,  // in the layout that tensor cores read, bfloat16 or the codes of WeightView::blocks: backend/cuda/gemm/packed.h
};

constexpr const char* quant_format_name(QuantFormat f) {
  return f == QuantFormat::kPlain    ? "none"
         : f == QuantFormat::kInt8   ? "int8"
         : f == QuantFormat::kInt4   ? "int4"
         : f == QuantFormat::kBlocks ? "blocks"
                                     : "packed";
}

// A weight matrix [rows, cols], row-major with cols contiguous (the checkpoint's [out, in]); a vector has rows = 1.
struct WeightView {
  const void* data = nullptr;
  DType dtype = DType::kF32;  // where the format is not kPlain, the dtype that the checkpoint has
  int64_t rows = 0;
  int64_t cols = 0;
  QuantFormat format = QuantFormat::kPlain;
  int64_t quantized_row_bytes = 0;  // where the format is not kPlain: from row to row
  BlockRows blocks = {};            // where the format is kBlocks, or was when it was packed; `data` is blocks.data

  bool empty() const { return data == nullptr; }
  int64_t row_bytes() const { return format == QuantFormat::kPlain ? cols * dtype_size(dtype) : quantized_row_bytes; }
  int64_t bytes() const { return format == QuantFormat::kBlocks ? block_bytes(blocks, rows, cols) : rows * row_bytes(); }
  const void* row(int64_t r) const { return static_cast<const char*>(data) + r * row_bytes(); }
};

// Returns the view of a matrix in blocks. dtype: that of the model.
inline WeightView view_of_blocks(const BlockRows& blocks, int64_t rows, int64_t cols, DType dtype) {
  return {blocks.data, dtype, rows, cols, QuantFormat::kBlocks, blocks.row_bytes, blocks};
}

}  // namespace lynx_rt
