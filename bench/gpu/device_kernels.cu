// Kernels that the measurements need in addition to the library's: plain reading and copying, random data, an empty launch.
#include <cuda_runtime.h>

#include "backend/cuda/runtime/launch.h"
#include "backend/cuda/runtime/ptx.cuh"
#include "measure.h"

namespace bench {

using namespace lynx_rt::cuda;

namespace {

constexpr int kThreads = 256, kLoads = 8;  // 16-byte loads in flight per thread

__device__ uint32_t mix(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352dU;
  x = (x ^ (x >> 15)) * 0x846ca68bU;
  return x ^ (x >> 16);
}

__device__ float uniform(int64_t i, uint32_t seed) {  // in [-1, 1)
  return float(int32_t(mix(uint32_t(i) ^ mix(seed + uint32_t(i >> 32))))) * 0x1p-31f;
}

__global__ void random_bf16_kernel(uint16_t* p, int64_t count, uint32_t seed, float scale) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x)
    p[i] = to_bf16(uniform(i, seed) * scale);
}
__global__ void random_float_kernel(float* p, int64_t count, uint32_t seed, float scale) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x)
    p[i] = uniform(i, seed) * scale;
}

__global__ void __launch_bounds__(kThreads) read_kernel(const Words4* from, int64_t count, uint32_t* sink) {
  grid_wait();
  grid_launch_dependents();
  uint32_t sum = 0;
  const int64_t stride = int64_t(gridDim.x) * kThreads * kLoads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads * kLoads + threadIdx.x; i + (kLoads - 1) * kThreads < count; i += stride) {
    Words4 v[kLoads];
    LYNX_UNROLL
    for (int j = 0; j < kLoads; ++j) v[j] = load_once(from + i + j * kThreads);
    LYNX_UNROLL
    for (int j = 0; j < kLoads; ++j) sum += v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  if (sum == 0x5bd1e995) *sink = sum;  // practically never, which the compiler cannot know
}

__global__ void __launch_bounds__(kThreads) copy_kernel(const Words4* from, Words4* to, int64_t count) {
  grid_wait();
  grid_launch_dependents();
  const int64_t stride = int64_t(gridDim.x) * kThreads * kLoads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads * kLoads + threadIdx.x; i + (kLoads - 1) * kThreads < count; i += stride) {
    Words4 v[kLoads];
    LYNX_UNROLL
    for (int j = 0; j < kLoads; ++j) v[j] = load_once(from + i + j * kThreads);
    LYNX_UNROLL
    for (int j = 0; j < kLoads; ++j) to[i + j * kThreads] = v[j];
  }
}

__global__ void empty_kernel() {
  grid_wait();
  grid_launch_dependents();
}

unsigned blocks_for(int64_t count) { return unsigned(std::min<int64_t>((count + kThreads - 1) / kThreads, 8192)); }

}  // namespace

int64_t l2_bytes() {
  int device = 0, bytes = 0;
  check(cudaGetDevice(&device), "device");
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrL2CacheSize, device), "device");
  return bytes;
}

void fill_random_bf16(uint16_t* p, int64_t count, uint32_t seed, float scale, Stream stream) {
  if (count) launch(random_bf16_kernel, blocks_for(count), kThreads, 0, stream, p, count, seed, scale);
}
void fill_random_float(float* p, int64_t count, uint32_t seed, float scale, Stream stream) {
  if (count) launch(random_float_kernel, blocks_for(count), kThreads, 0, stream, p, count, seed, scale);
}

void read_all(const void* from, int64_t bytes, uint32_t* sink, int num_blocks, Stream stream) {
  launch(read_kernel, unsigned(num_blocks), kThreads, 0, stream, static_cast<const Words4*>(from), bytes / 16, sink);
}
void copy_all(const void* from, void* to, int64_t bytes, int num_blocks, Stream stream) {
  launch(copy_kernel, unsigned(num_blocks), kThreads, 0, stream, static_cast<const Words4*>(from), static_cast<Words4*>(to),
         bytes / 16);
}
void do_nothing(Stream stream) { launch(empty_kernel, 1, 32, 0, stream); }

}  // namespace bench
