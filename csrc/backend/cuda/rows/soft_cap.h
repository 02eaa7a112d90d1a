// A bound on logits.
#pragma once
#include <cstdint>

#include "backend/cuda/runtime/runtime.h"

namespace lynx_rt::cuda {

// values[i] = cap * tanh(values[i] / cap), in place.
void soft_cap(float* values, int64_t count, float cap, Stream stream);

}  // namespace lynx_rt::cuda
