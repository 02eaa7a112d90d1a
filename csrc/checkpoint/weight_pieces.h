// The parts of a tensor that fill weight slots: checked, and copied where they cannot be used in place.
#pragma once
#include <cstdint>
#include <vector>

#include "checkpoint/weights.h"

namespace lynx_rt {

template <class... Parts>
[[noreturn]] void fail_table(const TensorSpec& spec, const Parts&... parts) {
  fail(ErrorCode::kInternal, spec.name, "weight table: ", spec.name, ": ", parts...);
}

// A tensor as the matrix of which WeightPiece speaks; no dimensions are one element.
struct MatrixShape {
  int64_t rows, cols;
};
MatrixShape matrix_shape(const std::vector<int64_t>& shape);

// The spec's pieces with their number of columns filled in. Throws kInternal where they do not cover the tensor, each element
// once.
std::vector<WeightPiece> checked_pieces(const TensorSpec& spec);

// The target that a piece becomes, without data.
WeightView target_view(const WeightPiece& piece, DType dtype);

}  // namespace lynx_rt
