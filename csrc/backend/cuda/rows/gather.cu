// embed(), gather_rows() and set_rows().
//
// Work split: a thread per quad of a row. Memory traffic per row: embed reads 4 H bytes (a packed fragment has two rows) and writes
// 4 H; gather_rows and set_rows 4 H each way, with `accumulate` 4 H more read. Limits: T * ceil(H / 4) <= 2^39.
#include "backend/cuda/rows/gather.h"

#include "backend/cuda/gemm/packed.h"
#include "backend/cuda/rows/per_quad.cuh"
#include "backend/cuda/runtime/quads.cuh"

namespace lynx_rt::cuda {

namespace {

struct EmbedParams {
  const unsigned char* table;
  const int32_t* ids;
  float* out;
  int num_rows, num_columns, quads;
  int64_t row_block_bytes;  // bytes of 16 rows
  float scale;
  bool aligned;
};

__global__ void __launch_bounds__(kQuadThreads) embed_kernel(const __grid_constant__ EmbedParams p) {
  grid_wait();
  grid_launch_dependents();
  const QuadOfRow at = quad_of_row(p.num_rows, p.num_columns, p.quads);
  if (at.count == 0) return;
  // Columns 8 q + 4 s .. + 3 of a block of 32 are in step s, lane 4 (row % 8) + q; see packed.h.
  const int id = p.ids[at.row], half = id / 8 % 2, column = at.column % 32;
  const int step = at.column / 32 * 2 + column / 4 % 2, lane = 4 * (id % 8) + column / 8;
  const Words4 words = load_16(p.table + id / 16 * p.row_block_bytes + step * int64_t(512) + lane * 16);
  const uint32_t low = half ? words.y : words.x, high = half ? words.w : words.z;
  const Quad quad = {p.scale * from_bf16(uint16_t(low)), p.scale * from_bf16(uint16_t(low >> 16)),
                     p.scale * from_bf16(uint16_t(high)), p.scale * from_bf16(uint16_t(high >> 16))};
  store_quad(p.out + at.row * p.num_columns + at.column, quad, at.count, p.aligned);
}

struct GatherParams {
  const float* x;
  const int32_t* rows;
  float* out;
  int num_rows, num_columns, quads;
  bool aligned;
};

__global__ void __launch_bounds__(kQuadThreads) gather_kernel(const __grid_constant__ GatherParams p) {
  grid_wait();
  grid_launch_dependents();
  const QuadOfRow at = quad_of_row(p.num_rows, p.num_columns, p.quads);
  if (at.count == 0) return;
  const Quad quad = load_quad(p.x + int64_t(p.rows[at.row]) * p.num_columns + at.column, at.count, p.aligned);
  store_quad(p.out + at.row * p.num_columns + at.column, quad, at.count, p.aligned);
}

struct SetParams {
  const float* from;
  int64_t from_stride;
  float* x;
  int num_rows, num_columns, quads;
  bool accumulate, aligned;
};

__global__ void __launch_bounds__(kQuadThreads) set_rows_kernel(const __grid_constant__ SetParams p) {
  grid_wait();
  grid_launch_dependents();
  const QuadOfRow at = quad_of_row(p.num_rows, p.num_columns, p.quads);
  if (at.count == 0) return;
  float* to = p.x + at.row * p.num_columns + at.column;
  Quad quad = load_quad(p.from + at.row * p.from_stride + at.column, at.count, p.aligned);
  if (p.accumulate) {
    const Quad old = load_quad(to, at.count, p.aligned);
    LYNX_UNROLL
    for (int i = 0; i < 4; ++i) quad.v[i] += old.v[i];
  }
  store_quad(to, quad, at.count, p.aligned);
}

}  // namespace

void embed(const void* packed_table, const int32_t* ids, int num_rows, int hidden_size, float scale, float* out, Stream stream) {
  const EmbedParams params{static_cast<const unsigned char*>(packed_table),
                           ids,
                           out,
                           num_rows,
                           hidden_size,
                           quads_of(hidden_size),
                           packed_bytes(kBlockRows, hidden_size),
                           scale,
                           hidden_size % 4 == 0 && aligned_16(out)};
  launch_per_quad(embed_kernel, params, stream);
}

void gather_rows(const float* x, const int32_t* rows, int num_rows, int hidden_size, float* out, Stream stream) {
  const bool aligned = hidden_size % 4 == 0 && aligned_16(x) && aligned_16(out);
  launch_per_quad(gather_kernel, {x, rows, out, num_rows, hidden_size, quads_of(hidden_size), aligned}, stream);
}

void set_rows(const float* from, int64_t from_stride, int num_rows, int num_columns, bool accumulate, float* x, Stream stream) {
  const bool aligned = num_columns % 4 == 0 && from_stride % 4 == 0 && aligned_16(from) && aligned_16(x);
  launch_per_quad(set_rows_kernel, {from, from_stride, x, num_rows, num_columns, quads_of(num_columns), accumulate, aligned},
                  stream);
}

}  // namespace lynx_rt::cuda
