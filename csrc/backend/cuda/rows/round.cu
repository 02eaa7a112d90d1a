// round_rows() and round_heads().
//
// Work split: a thread per quad of a rounded row, the zeros after its values included. Memory traffic per row: reads 4 K bytes,
// writes 2 padded_columns(K). Limits: rows * padded_columns(K) / 4 <= 2^39.
#include "backend/cuda/rows/round.h"

#include "backend/cuda/gemm/packed.h"
#include "backend/cuda/rows/per_quad.cuh"
#include "backend/cuda/runtime/quads.cuh"

namespace lynx_rt::cuda {

namespace {

struct RoundParams {
  const float* x;
  int64_t x_stride;
  uint16_t* rounded;
  int num_rows, num_columns, quads;
  bool aligned;
};

__global__ void __launch_bounds__(kQuadThreads) round_kernel(const __grid_constant__ RoundParams p) {
  grid_wait();
  grid_launch_dependents();
  const QuadOfRow at = quad_of_row(p.num_rows, p.num_columns, p.quads);
  if (at.row >= p.num_rows) return;
  const Quad quad = load_quad(p.x + at.row * p.x_stride + at.column, at.count, p.aligned);
  store_rounded(p.rounded + at.row * p.quads * 4 + at.column, quad, at.count);
}

struct HeadsParams {
  const float* x;
  int64_t x_stride, x_head;
  uint16_t* rounded;
  int num_heads, num_rows, num_columns, quads;  // num_rows: rounded rows, one per row and head
  bool aligned;
};

__global__ void __launch_bounds__(kQuadThreads) round_heads_kernel(const __grid_constant__ HeadsParams p) {
  grid_wait();
  grid_launch_dependents();
  const QuadOfRow at = quad_of_row(p.num_rows, p.num_columns, p.quads);
  if (at.row >= p.num_rows) return;
  const float* x = p.x + at.row / p.num_heads * p.x_stride + at.row % p.num_heads * p.x_head + at.column;
  store_rounded(p.rounded + at.row * p.quads * 4 + at.column, load_quad(x, at.count, p.aligned), at.count);
}

}  // namespace

void round_rows(const float* x, int64_t x_stride, int num_rows, int num_columns, uint16_t* rounded, Stream stream) {
  const bool aligned = x_stride % 4 == 0 && aligned_16(x);
  launch_per_quad(round_kernel, {x, x_stride, rounded, num_rows, num_columns, int(padded_columns(num_columns) / 4), aligned},
                  stream);
}

void round_heads(const float* x, int64_t x_stride, int64_t x_head, int num_rows, int num_heads, int num_columns,
                 uint16_t* rounded, Stream stream) {
  const int64_t rows = int64_t(num_rows) * num_heads;
  if (rows > INT32_MAX) invalid("round_heads", "rows of heads: expected at most 2^31 - 1, got ", num_rows, " * ", num_heads);
  const bool aligned = x_stride % 4 == 0 && x_head % 4 == 0 && aligned_16(x);
  launch_per_quad(
      round_heads_kernel,
      {x, x_stride, x_head, rounded, num_heads, int(rows), num_columns, int(padded_columns(num_columns) / 4), aligned}, stream);
}

}  // namespace lynx_rt::cuda
