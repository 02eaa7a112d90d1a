// The router scores, by which rows choose their experts.
#pragma once
#include <cstdint>

#include "backend/cuda/runtime/runtime.h"
#include "base/tensor.h"

namespace lynx_rt::cuda {

// scores[t, e] = scale * dot(x[t], weight[e]) + bias[e] in float32, in one fixed order; x [T, H], weight [E, H] row-major float32 or
// bfloat16, bias [E] or null.
void router(const float* x, const WeightView& weight, const float* bias, int num_rows, float* scores, Stream stream,
            float scale = 1);

}  // namespace lynx_rt::cuda
