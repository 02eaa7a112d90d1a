// Quantised weights as files hold them: codes in blocks of columns, with scales.
#pragma once
#include <cstdint>

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
  int64_t group = 0;  // columns that share a scale, a multiple of 32
  ScaleType scale_type = ScaleType::kF32;
  const void* scales = nullptr;
  int64_t scale_row_bytes = 0;
  const void* zeros = nullptr;  // a byte per row and group; null: 8 for kGroupedInt4, 0 for kGroupedInt8
  int64_t zero_row_bytes = 0;
};

// Columns and bytes of a block; for grouped codes a block is 32 columns without their scale.
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
  }
  return {};
}

constexpr int64_t scale_size(ScaleType type) { return type == ScaleType::kF32 ? 4 : type == ScaleType::kExponent ? 1 : 2; }

// Returns the bytes that a row of so many columns has: codes, scales and zeros.
constexpr int64_t block_row_bytes(const BlockRows& rows, int64_t columns) {
  const BlockSize size = block_size(rows.code);
  const int64_t codes = columns / size.columns * size.bytes;
  if (!rows.scales) return codes;
  return codes + (columns + rows.group - 1) / rows.group * (scale_size(rows.scale_type) + (rows.zeros ? 1 : 0));
}

// Returns the matrix without its first `count` rows.
inline BlockRows from_row(BlockRows rows, int64_t count) {
  const auto move = [count](const void*& p, int64_t bytes) {
    if (p) p = static_cast<const char*>(p) + count * bytes;
  };
  move(rows.data, rows.row_bytes);
  move(rows.scales, rows.scale_row_bytes);
  move(rows.zeros, rows.zero_row_bytes);
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
  }
  return "";
}

}  // namespace lynx_rt
