// What a quantised weight holds, for people and tests.
#pragma once
#include <cstdint>

#include "base/tensor.h"

namespace lynx_rt {

int64_t quantized_groups(const WeightView& weight);  // of columns; each has one scale per row
// values [N, K], of which one is values * scale; scales [N, groups]. Throws kInvalidArgument for a weight that is not quantised.
void read_quantized(const WeightView& weight, int8_t* values, float* scales);

}  // namespace lynx_rt
