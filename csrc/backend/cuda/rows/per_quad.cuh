// Launches with a thread per quad of a row (runtime/quads.cuh), for ops in which a quad does not depend on the rest of the row.
#pragma once
#include <cstdint>

#include "backend/cuda/runtime/launch.h"
#include "backend/cuda/runtime/ptx.cuh"
#include "base/types.h"

namespace lynx_rt::cuda {

inline constexpr int kQuadThreads = 256;  // threads of a block

inline bool aligned_16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }
inline int quads_of(int num_columns) { return int(ceil_div(num_columns, 4)); }

// The quad of a thread.
struct QuadOfRow {
  int64_t row;
  int column, count;  // count: values of the quad in the row; 0 = after the row, or no row
};
__device__ __forceinline__ QuadOfRow quad_of_row(int num_rows, int num_columns, int quads) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  QuadOfRow at = {i / quads, int(i % quads) * 4, 0};
  if (at.row < num_rows) at.count = num_columns - at.column < 0 ? 0 : num_columns - at.column < 4 ? num_columns - at.column : 4;
  return at;
}

// Params has members num_rows and quads, the quads of a row.
template <class Params>
void launch_per_quad(void (*kernel)(Params), const Params& params, Stream stream) {
  const int64_t count = int64_t(params.num_rows) * params.quads;
  if (count > 0) launch(kernel, Dim3(unsigned(ceil_div(count, kQuadThreads))), kQuadThreads, 0, stream, params);
}

}  // namespace lynx_rt::cuda
