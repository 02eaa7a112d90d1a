// combine(): adds the sum over a row's experts where no norm does. scale_weights(): a thread per pair.
//
// Work split: a thread per quad of a row. Memory traffic per row: reads 4 H (k + 1) bytes, writes 4 H.
// Limits: T * ceil(H / 4) <= 2^39.
#include "backend/cuda/rows/add_experts.cuh"
#include "backend/cuda/rows/norm.h"
#include "backend/cuda/rows/per_quad.cuh"

namespace lynx_rt::cuda {

namespace {

struct CombineParams {
  ExpertSum sum;
  float* x;
  int num_rows, num_columns, quads;
  bool aligned;
};

__global__ void __launch_bounds__(kQuadThreads) combine_kernel(const __grid_constant__ CombineParams p) {
  grid_wait();
  grid_launch_dependents();
  const QuadOfRow at = quad_of_row(p.num_rows, p.num_columns, p.quads);
  if (at.count == 0) return;
  float* x = p.x + at.row * p.num_columns + at.column;
  const Quad old = load_quad(x, p.sum.accumulate ? at.count : 0, p.aligned);
  store_quad(x, add_experts(p.sum, at.row, p.num_columns, at.column, at.count, p.aligned, old), at.count, p.aligned);
}

__global__ void __launch_bounds__(kQuadThreads)
    scale_kernel(const float* weights, const int32_t* ids, const float* expert_scale, int64_t count, float* out) {
  grid_wait();
  grid_launch_dependents();
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int id = ids[i];
  out[i] = id < 0 ? 0 : (weights ? weights[i] : 1) * expert_scale[id];
}

}  // namespace

void scale_weights(const float* weights, const int32_t* ids, const float* expert_scale, int64_t count, float* out,
                   Stream stream) {
  if (count > 0)
    launch(scale_kernel, Dim3(unsigned(ceil_div(count, kQuadThreads))), kQuadThreads, 0, stream, weights, ids, expert_scale,
           count, out);
}

void combine(const ExpertSum& sum, int num_rows, int hidden_size, float* x, Stream stream) {
  const bool aligned = hidden_size % 4 == 0 && aligned_16(x) && aligned_16(sum.partial);
  if (sum.partial) launch_per_quad(combine_kernel, {sum, x, num_rows, hidden_size, quads_of(hidden_size), aligned}, stream);
}

}  // namespace lynx_rt::cuda
