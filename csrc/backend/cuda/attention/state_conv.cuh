// The causal convolution of the ops that keep a state.
#pragma once
#include <cstdint>

#include "backend/cuda/runtime/ptx.cuh"

namespace lynx_rt::cuda {

// weights[j * stride + c] belongs to channel c and the j-th oldest of `width` inputs; bias [channels] or null.
struct ConvFilter {
  const float *weights, *bias;
  int64_t stride;
  int width;
};

// Convolves a channel of one sequence: for each row t in order put(t, bias + sum over its inputs, from the oldest on), the last of which is
// get(t). past: the inputs before row 0, oldest first, past_stride apart, which become those before the next row.
// kWidth: the most inputs of a convolution. Weights of inputs that it does not see are 0.
template <int kWidth, class Get, class Put>
__device__ void convolve(const ConvFilter& f, int channel, int64_t rows, float* past, int64_t past_stride, Get get, Put put) {
  const int missing = kWidth - f.width;
  const float bias = f.bias ? f.bias[channel] : 0;
  float weights[kWidth], inputs[kWidth];
  LYNX_UNROLL
  for (int j = 0; j < kWidth; ++j) {
    weights[j] = j < missing ? 0 : f.weights[(j - missing) * f.stride + channel];
    inputs[j] = j < missing || j == kWidth - 1 ? 0 : past[(j - missing) * past_stride];
  }
  LYNX_ROLLED
  for (int64_t t = 0; t < rows; ++t) {
    inputs[kWidth - 1] = get(t);
    float sum = bias;
    LYNX_UNROLL
    for (int j = 0; j < kWidth; ++j) sum = sum + weights[j] * inputs[j];
    put(t, sum);
    LYNX_UNROLL
    for (int j = 0; j + 1 < kWidth; ++j) inputs[j] = inputs[j + 1];
  }
  LYNX_UNROLL
  for (int j = 0; j + 1 < kWidth; ++j)
    if (j >= missing) past[(j - missing) * past_stride] = inputs[j];
}

}  // namespace lynx_rt::cuda
