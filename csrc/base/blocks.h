// Quantised weights as files hold them: codes in blocks of columns, with scales.
#pragma once
#include <cstdint>

#include "base/types.h"

namespace lynx_rt {

// What a block of codes is. The first eleven are types of GGUF (ggml-common.h of llama.cpp), whose scales are in the block; the others
// have scales in a tensor of their own, one per row and group of columns. Values: backend/cpu/kernels/blocks.h.
enum class BlockCode : uint8_t {
  kQ8_0,
  kQ4_0,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kIQ4_NL,
  kIQ4_XS,
  kMxfp4,
  kGroupedMxfp4,  // gpt-oss: two columns in a byte, the lower half first; scales are exponents, one byte per 32 columns
  kGroupedInt4,   // two columns in a byte, the lower half first; code - zero
  kGroupedInt8,   // signed bytes
  kGroupedFp8,    // E4M3 (arXiv 2209.05433): a sign bit, 4 bits of the exponent, 3 of the mantissa
};

// Whether scales are a tensor of their own.
constexpr bool has_scale_tensor(BlockCode code) { return code >= BlockCode::kGroupedMxfp4; }

// The type of scales that are a tensor of their own.
enum class ScaleType : uint8_t { kF32, kBF16, kF16, kExponent };

// A matrix of codes. Rows lie anywhere in memory at a constant distance; nothing is aligned.
struct BlockRows {
  BlockCode code = BlockCode::kQ8_0;
  const void* data = nullptr;
  int64_t row_bytes = 0;  // from row to row, which may be more than a row has
  // Grouped codes only.
  int64_t group = 0;  // columns that share a scale; a multiple of 32, but any number for kGroupedFp8
  ScaleType scale_type = ScaleType::kF32;
  const void* scales = nullptr;
  int64_t scale_row_bytes = 0;  // from one row of scales to the next; 0: all rows share one
  // Rows that share a row of scales, and which of the first of them row 0 is: more than one, and another than 0, for kGroupedFp8 alone.
  int64_t scale_rows = 1, first_scale_row = 0;
  const void* zeros = nullptr;  // a byte per row and group; null: 8 for kGroupedInt4, 0 for kGroupedInt8
  int64_t zero_row_bytes = 0;
  // A value is rounded to this type, in which the reference multiplies, before it is rounded to the type of the weights.
  DType product_dtype = DType::kF32;
};

// Columns and bytes of a block; for grouped codes a block is 32 columns without their scale, for FP8 one.
struct BlockSize {
  int64_t columns, bytes;
};

constexpr BlockSize block_size(BlockCode code) {
  switch (code) {
    case BlockCode::kQ8_0: return {32, 34};
    case BlockCode::kQ4_0: return {32, 18};
    case BlockCode::kIQ4_NL: return {32, 18};
    case BlockCode::kMxfp4: return {32, 17};
    case BlockCode::kQ4_K: return {256, 144};
    case BlockCode::kQ5_K: return {256, 176};
    case BlockCode::kQ6_K: return {256, 210};
    case BlockCode::kIQ4_XS: return {256, 136};
    case BlockCode::kGroupedMxfp4: return {32, 16};
    case BlockCode::kGroupedInt4: return {32, 16};
    case BlockCode::kGroupedInt8: return {32, 32};
    case BlockCode::kGroupedFp8: return {1, 1};
  }
  return {};
}

constexpr int64_t scale_size(ScaleType type) { return type == ScaleType::kF32 ? 4 : type == ScaleType::kExponent ? 1 : 2; }

// Returns the bytes that `count` rows of so many columns have: codes, scales and zeros.
constexpr int64_t block_bytes(const BlockRows& rows, int64_t count, int64_t columns) {
  const BlockSize size = block_size(rows.code);
  const int64_t codes = count * (columns / size.columns * size.bytes);
  if (!rows.scales || count == 0) return codes;
  const int64_t groups = ceil_div(columns, rows.group);
  const int64_t scale_rows = rows.scale_row_bytes ? ceil_div(rows.first_scale_row + count, rows.scale_rows) : 1;
  return codes + scale_rows * groups * scale_size(rows.scale_type) + (rows.zeros ? count * groups : 0);
}

// Returns the matrix without its first `count` rows.
inline BlockRows from_row(BlockRows rows, int64_t count) {
  const auto move = [count](const void*& p, int64_t bytes) {
    if (p) p = static_cast<const char*>(p) + count * bytes;
  };
  move(rows.data, rows.row_bytes);
  move(rows.zeros, rows.zero_row_bytes);
  const int64_t row = rows.first_scale_row + count;
  if (rows.scales) rows.scales = static_cast<const char*>(rows.scales) + row / rows.scale_rows * rows.scale_row_bytes;
  rows.first_scale_row = row % rows.scale_rows;
  return rows;
}

constexpr const char* block_code_name(BlockCode code) {
  switch (code) {
    case BlockCode::kQ8_0: return "Q8_0";
    case BlockCode::kQ4_0: return "Q4_0";
    case BlockCode::kIQ4_NL: return "IQ4_NL";
    case BlockCode::kMxfp4: return "MXFP4";
    case BlockCode::kQ4_K: return "Q4_K";
    case BlockCode::kQ5_K: return "Q5_K";
    case BlockCode::kQ6_K: return "Q6_K";
    case BlockCode::kIQ4_XS: return "IQ4_XS";
    case BlockCode::kGroupedMxfp4: return "mxfp4";
    case BlockCode::kGroupedInt4: return "grouped int4";
    case BlockCode::kGroupedInt8: return "grouped int8";
    case BlockCode::kGroupedFp8: return "FP8";
  }
  return "";
}

}  // namespace lynx_rt
