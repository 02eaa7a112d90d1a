// Sources of weights in a checkpoint, and copies of the weights that cannot be used in place.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "checkpoint/gguf_blocks.h"
#include "checkpoint/quantized_tensor.h"
#include "checkpoint/weight_pieces.h"

namespace lynx_rt {

// A tensor of floats, or one to decode.
struct WeightSource {
  const TensorInfo* plain = nullptr;
  std::unique_ptr<const QuantizedTensor> quantized;
  DecodeBlocks decode = nullptr;  // of a plain tensor whose rows are blocks of a GGUF type
  int64_t row_bytes = 0;          // of such a tensor
  DType dtype = DType::kF32;      // of the targets whose piece states no dtype
  // All rows of the matrix as the file holds them, where a target may be in blocks (base/blocks.h).
  std::optional<BlockRows> blocks;
  bool is_double() const { return plain && plain->dtype == kDouble; }

  static constexpr std::string_view kDouble = "F64";
};

// All copies lie in one block, in the order in which they were added; each is 64-byte aligned.
struct WeightCopies::Block {
  struct Piece {
    WeightPiece piece;  // its target is not used after allocate()
    int64_t offset;
    bool repacked;  // to blocks, instead of decoded
  };
  struct Tensor {
    WeightSource source;
    MatrixShape shape;
    std::vector<Piece> pieces;
    int64_t begin, bytes;  // where its pieces lie in the block, and how long they are together
    bool read = false;
  };
  class Copier;

  explicit Block(const Checkpoint& from);
  ~Block();
  // Reserves places for the pieces of a tensor: some to copy or decode, others to repack.
  void add(WeightSource source, const MatrixShape& shape, const std::vector<WeightPiece>& of_tensor,
           const std::vector<WeightPiece>& repacked);
  void allocate();  // gives the targets their places
  Tensor* find(const void* data);
  void read(Tensor& tensor);

  const Checkpoint& checkpoint;
  std::vector<Tensor> tensors;
  int64_t bytes = 0, read_bytes = 0, dropped = 0;
  OwnedPages memory;
  std::unique_ptr<Copier> copier;  // while there is something to read
};

}  // namespace lynx_rt
