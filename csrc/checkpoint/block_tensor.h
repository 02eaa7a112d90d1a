// Quantised weights that products read in blocks (base/blocks.h), without decoding them: where they lie in the file, or repacked.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include "base/blocks.h"
#include "checkpoint/quantized_tensor.h"
#include "checkpoint/weight_pieces.h"

namespace lynx_rt {

// Returns a piece of a weight where it lies in the file; nullopt where no product reads that form. In place are FP8, and MXFP4, int4 with
// symmetric codes, and int8 in signed bytes, whose columns and groups are multiples of 32.
std::optional<BlockRows> blocks_in_place(const QuantizedTensor& tensor, const WeightPiece& piece);

// Repacks weights whose codes products read in another order than the file's, without loss: GPTQ and AWQ, int4 with zero points, int8
// with an offset. The result is the codes of all rows, then their scales, then their zero points.
// Thread-safety: const methods are safe from any thread.
class Repacker {
 public:
  // Whether a piece can be repacked. Not those of 8 bits with zero points, those whose groups do not follow one another (desc_act), and
  // those whose columns or groups are no multiples of 32.
  static bool repacks(const QuantizedTensor& tensor, const WeightPiece& piece);
  // The result for `rows` rows that begins at `memory`, which may be null where only sizes are wanted.
  static BlockRows result(const QuantizedTensor& tensor, int64_t rows, uint8_t* memory);
  static int64_t bytes(const QuantizedTensor& tensor, int64_t rows);

  explicit Repacker(const QuantizedTensor& tensor);
  // Writes the result of rows [begin, begin + count) of a piece.
  void repack(const WeightPiece& piece, int64_t begin, int64_t count, uint8_t* memory) const;

 private:
  void repack_awq(int64_t row, int64_t count, uint8_t* codes, int64_t row_bytes) const;

  QuantizedTensor t_;
  std::vector<uint8_t> zeros_;  // [matrices, rows, groups], of int4 with zero points
};

}  // namespace lynx_rt
