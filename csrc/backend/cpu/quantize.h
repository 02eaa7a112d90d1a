// Reads the values and scales of a quantised weight, for people and tests.
#pragma once
#include <cstdint>

#include "base/tensor.h"

namespace lynx_rt {

int64_t quantized_groups(const WeightView& weight);  // number of groups of columns; a group has one scale per row
// values [N, K], scales [N, groups]: a weight is its value times the scale of its row and group. Throws kInvalidArgument for a weight
// that is not quantised.
void read_quantized(const WeightView& weight, int8_t* values, float* scales);

}  // namespace lynx_rt
