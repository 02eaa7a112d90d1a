// Decodes quantised weights.
#pragma once
#include <cstdint>
#include <vector>

#include "checkpoint/quantized_tensor.h"

namespace lynx_rt {

// Returns the zero points of a weight that has some, [matrices, grid_rows, grid_cols], as codes like the weight's. Not for int8 that
// is not packed.
std::vector<uint8_t> read_zero_codes(const QuantizedTensor& tensor);

// [c] the 4-bit field, counted from the lowest, that holds column c of the eight columns of an AWQ word.
inline constexpr int kAwqPosition[] = {0, 4, 1, 5, 2, 6, 3, 7};

// Thread-safety: const methods are safe from any thread.
class Dequantizer {
 public:
  explicit Dequantizer(const QuantizedTensor& tensor);
  // Decodes one row to `out` [cols], in float32, not yet rounded to product_dtype. Rows are counted through all matrices.
  void decode(int64_t row, float* out) const;

 private:
  void read_zeros();
  void decode_codes(int64_t row, float* out) const;

  QuantizedTensor t_;
  std::vector<float> values_;         // [2^bits] value of each code
  std::vector<float> scale_;          // [matrices, grid_rows, grid_cols]
  std::vector<float> zero_;           // [matrices, grid_rows, grid_cols], or empty
  std::vector<int32_t> group_index_;  // [cols], or empty
};

}  // namespace lynx_rt
