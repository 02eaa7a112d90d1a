// The sum over a row's experts, which the kernel that reads the row next computes.
#pragma once
#include <cstdint>

#include "backend/cuda/runtime/ptx.cuh"
#include "backend/cuda/runtime/quads.cuh"
#include "backend/pending_sum.h"

namespace lynx_rt::cuda {

// Returns x (0 where it is not added to) plus the sum of row t's experts, in four columns. The loads of four choices are in flight
// together.
__device__ inline Quad add_experts(const ExpertSum& c, int64_t t, int num_columns, int column, int count, bool aligned,
                                   const Quad& x) {
  Quad sum = {};
  for (int first = 0; first < c.top_k; first += 4) {
    Quad part[4];
    float weight[4];
    bool used[4];
    LYNX_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int64_t pair = t * c.top_k + first + i;
      used[i] = first + i < c.top_k && c.ids[pair] >= 0;
      weight[i] = !used[i] ? 0 : c.weights ? c.weights[pair] : 1;
      part[i] = load_quad(c.partial + pair * num_columns + column, used[i] ? count : 0, aligned);
    }
    LYNX_UNROLL
    for (int i = 0; i < 4; ++i) {
      LYNX_UNROLL
      for (int j = 0; j < 4; ++j)
        if (used[i]) sum.v[j] = fmaf(weight[i], part[i].v[j], sum.v[j]);
    }
  }
  LYNX_UNROLL
  for (int j = 0; j < 4; ++j) sum.v[j] += x.v[j];
  return sum;
}

}  // namespace lynx_rt::cuda
