// soft_cap(): a thread per value. Memory traffic: 8 bytes per value. Limits: count <= 2^39.
#include "backend/cuda/rows/soft_cap.h"

#include <cmath>

#include "backend/cuda/runtime/launch.h"
#include "backend/cuda/runtime/ptx.cuh"
#include "base/types.h"

namespace lynx_rt::cuda {

namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) soft_cap_kernel(float* values, int64_t count, float cap) {
  grid_wait();
  grid_launch_dependents();
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) values[i] = cap * tanhf(values[i] / cap);
}

}  // namespace

void soft_cap(float* values, int64_t count, float cap, Stream stream) {
  if (count > 0) launch(soft_cap_kernel, Dim3(unsigned(ceil_div(count, kThreads))), kThreads, 0, stream, values, count, cap);
}

}  // namespace lynx_rt::cuda
