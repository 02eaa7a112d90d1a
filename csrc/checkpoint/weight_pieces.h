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

// The tensor's shape as the matrix that WeightPiece refers to. A tensor without dimensions has one element.
struct MatrixShape {
  int64_t rows, cols;
};
MatrixShape matrix_shape(const TensorSpec& spec);

// Returns the spec's pieces with `cols` filled in. Throws kInternal unless they cover each element of the tensor exactly once.
std::vector<WeightPiece> checked_pieces(const TensorSpec& spec);

// Returns the view that a piece's target becomes, still without data.
WeightView target_view(const WeightPiece& piece, DType dtype);

}  // namespace lynx_rt
