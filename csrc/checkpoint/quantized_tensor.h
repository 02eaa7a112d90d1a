// Finds the tensors of a checkpoint that hold a quantised weight.
#pragma once
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/types.h"
#include "checkpoint/quantization_config.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/weight_problems.h"

namespace lynx_rt {

// A weight [matrices, rows, cols] as it lies in the file. A value is (code - zero) * scale, with the scale and the zero point of
// the element's block.
struct QuantizedTensor {
  QuantizedFormat format;
  int64_t matrices = 1, rows = 0, cols = 0;
  int64_t grid_rows = 0, grid_cols = 0;  // scales of one matrix, padding included
  const TensorInfo* codes = nullptr;
  const TensorInfo* scale = nullptr;
  std::string scale_name;
  const TensorInfo* zero = nullptr;         // null: symmetric
  const TensorInfo* group_index = nullptr;  // null: the groups follow one another
  bool zeros_less_one = false;
  // The type in which the reference multiplies: the product is rounded to it before it is converted to the weight's dtype.
  DType product_dtype = DType::kF32;
};

// Finds the weight `name` of that shape where the file holds it quantised; else returns nullopt (it may be there plain, or not at
// all). Adds the names of the tensors that belong to it to `used`, and what is wrong with them to `problems`; a result with
// problems must not be decoded.
std::optional<QuantizedTensor> find_quantized(const Checkpoint& checkpoint, const QuantizationConfig& config,
                                              const std::string& name, const std::vector<int64_t>& shape,
                                              std::set<std::string_view>& used, WeightProblems& problems);

bool are_scales_finite(const QuantizedTensor& tensor);
// Throws kCorruptFile, naming the tensor of the scales, where one of them is not finite.
void check_scales(const Checkpoint& checkpoint, const QuantizedTensor& tensor);

}  // namespace lynx_rt
