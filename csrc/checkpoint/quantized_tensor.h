// Finds the tensors of a checkpoint that hold a quantised weight.
#pragma once
#include <cstdint>
#include <optional>
#include <set>
#include <string_view>
#include <vector>

#include "base/types.h"
#include "checkpoint/quantization_config.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/weight_problems.h"

namespace lynx_rt {

// A weight [matrices, rows, cols] as it lies in the file. Value = (code - zero) * scale, with the scale and the zero point of the
// block that the element lies in.
struct QuantizedTensor {
  QuantizedFormat format;
  int64_t matrices = 1, rows = 0, cols = 0;
  int64_t grid_rows = 0, grid_cols = 0;  // scales of one matrix, padding included
  const TensorInfo* codes = nullptr;
  const TensorInfo* scale = nullptr;
  const TensorInfo* zero = nullptr;         // null: symmetric
  const TensorInfo* group_index = nullptr;  // null: the groups follow one another
  bool zeros_less_one = false;
  // The reference multiplies in this type: a product is rounded to it before it becomes a weight.
  DType product_dtype = DType::kF32;
};

// The weight `name` of that shape where the file holds it quantised, else nullopt (it may be there plain, or not at all). Names
// of the tensors that belong to it are added to `used`; what is wrong with them to `problems`, and then the result is not to be
// decoded.
std::optional<QuantizedTensor> find_quantized(const Checkpoint& checkpoint, const QuantizationConfig& config,
                                              const std::string& name, const std::vector<int64_t>& shape,
                                              std::set<std::string_view>& used, WeightProblems& problems);

}  // namespace lynx_rt
