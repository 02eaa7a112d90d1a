// Binds checkpoint tensors to weight slots with exact accounting.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "base/tensor.h"
#include "checkpoint/safetensors.h"

namespace lynx_rt {

// A part of a tensor seen as a matrix [product of all but the last dimension, last]: rows row_begin, row_begin + row_step, ..
// (`rows` of them) and columns alike; cols = 0 is all columns from col_begin on. What is whole rows one after the other is bound
// in place; anything else, and what is decoded, is copied. A fused tensor has several pieces, e.g. experts.gate_up_proj
// [E, 2I, H] has 2E.
struct WeightPiece {
  WeightView* target;
  int64_t row_begin;
  int64_t rows;
  int64_t row_step = 1;
  int64_t col_begin = 0;
  int64_t cols = 0;
  int64_t col_step = 1;
  bool transposed = false;  // the target is the part's transpose
  bool as_float32 = false;  // the target is float32 whatever the tensor is
};

struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<WeightPiece> pieces;  // together they cover the tensor, each element once
};

// A spec for a tensor that fills one slot whole; shape has one or two dimensions.
TensorSpec whole_tensor(std::string name, std::vector<int64_t> shape, WeightView* target);

// Owns copies of the few tensors that cannot be used where they lie (data not aligned to its element size).
using OwnedWeights = std::vector<std::unique_ptr<uint8_t[]>>;

// Fills every target from the mapping, in place; nothing is filled unless everything fits. Each spec must find its
// tensor with that exact shape and a floating dtype (F32, BF16, F16), and each tensor of the checkpoint must be named by
// a spec or match an `ignore` pattern (a name, or a prefix ending in '*', or a suffix starting with '*'). Otherwise
// throws kCorruptFile with the count and the first ten of each kind: missing, unexpected, wrong shape, wrong dtype.
// Specs that name a tensor twice, or whose pieces do not cover it, are a bug of the caller: kInternal.
// Test: tests/cpp/test_checkpoint.cc.
OwnedWeights bind_weights(const Checkpoint& checkpoint, const std::vector<TensorSpec>& specs,
                          const std::vector<std::string>& ignore);

}  // namespace lynx_rt
