// The layout of weights for the tensor cores, and of activations that enter a product.
//
// Packed weights. A matrix [N, K] becomes bf16 A fragments of mma.m16n8k16: rows in blocks of 16, columns in blocks of 32, both
// padded with zeros. A block of 16 x 32 is two steps s of 16 columns; step s is 32 lanes x 16 bytes, so that a warp reads 512
// contiguous bytes per step. Inside a block of 32 the columns are permuted: in step s lane l, with q = l % 4, has the columns
// 8 q + 4 s + {0, 1} in registers 0 (row l / 4) and 1 (row l / 4 + 8), and 8 q + 4 s + {2, 3} in registers 2 and 3.
// So the other operand of two steps is a token's values 8 q .. 8 q + 7, one load of 16 bytes per lane.
//   bytes of a matrix: padded_rows(N) * padded_columns(K) * 2
//   gate and up of an expert share one array: in every step the gate's 512 bytes, then the up's.
//
// Quantised weights stay codes of 4 or 8 bits, of which packed_weights.cuh makes those fragments in registers. The blocks of 16 x 32
// follow one another as above; a block is 32 lanes x 16 codes, one load of 8 or 16 bytes per lane, of a lane's registers of step 0,
// then of step 1. With 4 bits a step is a word, whose bits 4 r .. and 16 + 4 r .. are the low and the high half of register r. With 8
// bits it is two words, of two registers each; a code is a byte, of FP8 or int8 plus 128. After the codes of all rows come their scales, in the
// file's type, then their zero points, bytes: [row blocks][groups of columns][16], row r of a block at (r % 8) * 2 + r / 8, so that
// a lane's two rows are neighbours. Where gate and up share an array, the gate's block or group comes before the up's.
//
// Rounded activations: bf16 rows of padded_columns(K) values, with zeros after the first K.
// Source of the fragment layout: PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type".
#pragma once
#include <cstdint>

#include "backend/cuda/runtime/runtime.h"
#include "base/tensor.h"
#include "base/types.h"

namespace lynx_rt::cuda {

inline constexpr int kBlockRows = 16, kBlockColumns = 32;

constexpr int64_t padded_rows(int64_t n) { return round_up(n, kBlockRows); }
constexpr int64_t padded_columns(int64_t k) { return round_up(k, kBlockColumns); }
constexpr int64_t packed_bytes(int64_t n, int64_t k) { return padded_rows(n) * padded_columns(k) * 2; }

// The form of a packed matrix's values.
struct PackedForm {
  int8_t bits = 16;  // 16: bf16, and nothing below applies; 8 or 4: codes
  BlockCode code = {};
  ScaleType scale_type = {};
  bool zeros = false;  // has zero points
  int32_t group = 1;   // blocks of 32 columns that share a scale

  bool operator==(const PackedForm&) const = default;
};

// Whether products take these weights in codes: MXFP4, int4 with scales of 16 bits, int8, FP8 whose products are made in float32 or
// bfloat16.
constexpr bool multiplies(const BlockRows& rows) {
  switch (rows.code) {
    case BlockCode::kGroupedMxfp4: return rows.scale_type == ScaleType::kExponent;
    case BlockCode::kGroupedInt4: return rows.scale_type == ScaleType::kBF16 || rows.scale_type == ScaleType::kF16;
    case BlockCode::kGroupedInt8: return rows.scale_type != ScaleType::kExponent && !rows.zeros;
    case BlockCode::kGroupedFp8:
      return rows.group % kBlockColumns == 0 && rows.product_dtype != DType::kF16 &&
             (rows.scale_type == ScaleType::kF32 || rows.scale_type == ScaleType::kBF16);
    default: return false;
  }
}
// Returns the form that weights become for which multiplies() holds.
PackedForm packed_form(const BlockRows& rows);
// Returns the form of a weight that is to be packed, or has been.
inline PackedForm form_of(const WeightView& weight) { return weight.blocks.data ? packed_form(weight.blocks) : PackedForm(); }

constexpr int64_t packed_bytes(int64_t n, int64_t k, const PackedForm& form) {
  const int64_t codes = padded_rows(n) * padded_columns(k) * form.bits / 8;
  if (form.bits == 16) return codes;
  const int64_t scales = padded_rows(n) * ceil_div(ceil_div(k, kBlockColumns), form.group);
  return codes + scales * (scale_size(form.scale_type) + (form.zeros ? 1 : 0));
}

struct PackTarget {
  void* data = nullptr;  // start of the packed matrix, or of the shared array of gate and up; 16-byte aligned
  int parts = 1;         // 2: gate and up share the array
  int part = 0;          // 0: gate, or the only matrix; 1: up
};

// Packs rows [row_begin, row_begin + num_rows) of a matrix with num_columns columns. `rows` points to the first of them,
// row-major, in device memory, aligned to its element. row_begin is a multiple of 16; after the last row, zeros are written up to the
// next multiple of 16 rows. Values are rounded to the nearest bf16, ties to even.
void pack(const void* rows, DType dtype, int64_t row_begin, int64_t num_rows, int64_t num_columns, const PackTarget& target,
          Stream stream);

// Packs rows of a matrix [matrix_rows, num_columns] in grouped codes, as pack() does, to packed_form(). `rows` is in device memory, a
// row of scales for each row of codes. Codes are aligned to 4 bytes, scales to their type; rows of codes are completed with zeros to a
// multiple of 32 columns.
void pack_codes(const BlockRows& rows, int64_t row_begin, int64_t num_rows, int64_t matrix_rows, int64_t num_columns,
                const PackTarget& target, Stream stream);

// Converts values (norm weights, biases) to float32.
void to_float32(const void* values, DType dtype, int64_t count, float* out, Stream stream);

}  // namespace lynx_rt::cuda
