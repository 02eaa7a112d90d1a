// The matrices of one expert.
#pragma once
#include <array>
#include <cstdint>

#include "base/tensor.h"

namespace lynx_rt {

// I: width of the expert, H: hidden size.
struct ExpertWeights {
  WeightView gate;                           // [I, H]
  WeightView up;                             // [I, H]; empty where the activation is of gate alone (Nemotron-H's up_proj is gate)
  WeightView down;                           // [H, I]
  WeightView gate_bias, up_bias, down_bias;  // [I], [I], [H]; all that belong to a matrix, or none

  static constexpr size_t kNumViews = 6;
  std::array<WeightView*, kNumViews> views() { return {&gate, &up, &down, &gate_bias, &up_bias, &down_bias}; }
  std::array<const WeightView*, kNumViews> views() const { return {&gate, &up, &down, &gate_bias, &up_bias, &down_bias}; }

  int64_t bytes() const {
    int64_t sum = 0;
    for (const WeightView* v : views()) sum += v->bytes();
    return sum;
  }
};

}  // namespace lynx_rt
