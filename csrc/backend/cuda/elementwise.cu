// embed, combine, rmsnorm, layernorm, round_rows, round_heads, gather_rows.
//
// Work split. Norms: a block per row, which it keeps in registers between the sums and the scaling where H <= 8192, and reads
// again where not. The others: a thread per quad of a row (quads.cuh). A norm's number of threads, and with it the order of its
// sums, depends on H only: quads of a thread in order, lanes by a butterfly, warps in order.
// Memory traffic per row: embed reads 4 H bytes (a packed fragment has two rows) and writes 4 H; combine reads 4 H (k + 1) and
// writes 4 H; a norm reads 4 H and writes what is wanted, 4 H and 2 H, plus combine's where fused; gather_rows 4 H each way.
// Limits: T * ceil(H / 4) <= 2^39.
#include "backend/cuda/elementwise.h"

#include <algorithm>
#include <cmath>

#include "backend/cuda/gemm/packed.h"
#include "backend/cuda/runtime/launch.h"
#include "backend/cuda/runtime/ptx.cuh"
#include "backend/cuda/runtime/quads.cuh"
#include "base/types.h"

namespace lynx_rt::cuda {

namespace {

constexpr int kThreads = 256;     // of the kernels with a thread per quad
constexpr int kMaxThreads = 512;  // of a row
constexpr int kMaxQuads = 4;      // of a thread that keeps them

bool aligned_16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// A thread's quad of rows that have `quads` each.
struct Place {
  int64_t row;
  int column, count;  // values of the quad that the row has; 0 = behind the row, or no row
};
__device__ Place place_of(int num_rows, int num_columns, int quads) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  Place at = {i / quads, int(i % quads) * 4, 0};
  if (at.row < num_rows) at.count = num_columns - at.column < 0 ? 0 : num_columns - at.column < 4 ? num_columns - at.column : 4;
  return at;
}

template <class Params>
void launch_per_quad(void (*kernel)(Params), const Params& params, Stream stream) {
  const int64_t count = int64_t(params.num_rows) * params.quads;
  if (count > 0) launch(kernel, Dim3(unsigned(ceil_div(count, kThreads))), kThreads, 0, stream, params);
}

// --- embed

struct EmbedParams {
  const unsigned char* table;
  const int32_t* ids;
  float* out;
  int num_rows, num_columns, quads;
  int64_t row_block_bytes;  // of 16 rows
  float scale;
  bool aligned;
};

__global__ void __launch_bounds__(kThreads) embed_kernel(const __grid_constant__ EmbedParams p) {
  grid_wait();
  grid_launch_dependents();
  const Place at = place_of(p.num_rows, p.num_columns, p.quads);
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

// --- combine and norms

// x plus the sum of row t's experts in four columns. Loads of four slots are under way together.
__device__ Quad add_experts(const Combine& c, int64_t t, int num_columns, int column, int count, bool aligned, const Quad& x) {
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

struct CombineParams {
  Combine combine;
  float* x;
  int num_rows, num_columns, quads;
  bool aligned;
};

__global__ void __launch_bounds__(kThreads) combine_kernel(const __grid_constant__ CombineParams p) {
  grid_wait();
  grid_launch_dependents();
  const Place at = place_of(p.num_rows, p.num_columns, p.quads);
  if (at.count == 0) return;
  float* x = p.x + at.row * p.num_columns + at.column;
  const Quad old = load_quad(x, at.count, p.aligned);
  store_quad(x, add_experts(p.combine, at.row, p.num_columns, at.column, at.count, p.aligned, old), at.count, p.aligned);
}

struct NormParams {
  Combine combine;
  float* x;
  const float* weight;
  const float* bias;  // of layernorm, or null
  float* out;
  uint16_t* rounded;
  float eps;
  int num_columns, quads;  // of a row with the zeros behind it
  bool aligned;
};

// The sum of all threads' values in all of them; `of_warp` is shared memory for this call alone.
__device__ float sum_of_block(float sum, float* of_warp) {
  for (int bit = 16; bit > 0; bit /= 2) sum += shuffle_xor(kFullWarp, sum, bit);
  if (lane_id() == 0) of_warp[warp_id()] = sum;
  sync_block();  // of_warp
  sum = 0;
  for (int warp = 0; warp < int(blockDim.x) / 32; ++warp) sum += of_warp[warp];
  return sum;
}

// kQuads: what a thread keeps; 0 = it reads its quads again. kCentered: layernorm.
template <int kQuads, bool kCentered>
__global__ void __launch_bounds__(kMaxThreads) norm_kernel(const __grid_constant__ NormParams p) {
  constexpr int kKept = kQuads ? kQuads : 1;
  const int threads = int(blockDim.x), thread = int(threadIdx.x), n = p.num_columns;
  const int64_t t = blockIdx.x;
  const auto count_at = [n](int column) { return n - column < 0 ? 0 : n - column < 4 ? n - column : 4; };
  Quad weight[kKept];
  LYNX_UNROLL
  for (int i = 0; i < kQuads; ++i) {
    const int column = (thread + i * threads) * 4;
    weight[i] = load_quad(p.weight + column, count_at(column), p.aligned);
  }
  grid_wait();
  grid_launch_dependents();

  float* x = p.x + t * n;
  const auto load = [&](int column) {
    const int count = count_at(column);
    Quad quad = load_quad(x + column, count, p.aligned);
    if (p.combine.partial && count > 0) {
      quad = add_experts(p.combine, t, n, column, count, p.aligned, quad);
      store_quad(x + column, quad, count, p.aligned);
    }
    return quad;
  };
  float sum = 0;
  const auto add = [&sum](const Quad& quad) {
    LYNX_UNROLL
    for (int j = 0; j < 4; ++j) sum = kCentered ? sum + quad.v[j] : fmaf(quad.v[j], quad.v[j], sum);
  };
  Quad kept[kKept];
  LYNX_UNROLL
  for (int i = 0; i < kQuads; ++i) add(kept[i] = load((thread + i * threads) * 4));
  for (int i = thread; kQuads == 0 && i < p.quads; i += threads) add(load(i * 4));

  float* of_warp = reinterpret_cast<float*>(dynamic_shared());
  sum = sum_of_block(sum, of_warp);
  float mean = 0;
  if constexpr (kCentered) {
    mean = sum / float(n);
    sum = 0;
    const auto add_square = [&](const Quad& quad, int count) {
      LYNX_UNROLL
      for (int j = 0; j < 4; ++j) {
        const float d = quad.v[j] - mean;
        if (j < count) sum = fmaf(d, d, sum);
      }
    };
    LYNX_UNROLL
    for (int i = 0; i < kQuads; ++i) add_square(kept[i], count_at((thread + i * threads) * 4));
    for (int i = thread; kQuads == 0 && i < p.quads; i += threads)
      add_square(load_quad(x + i * 4, count_at(i * 4), p.aligned), count_at(i * 4));
    sum = sum_of_block(sum, of_warp + kMaxThreads / 32);
  }
  const float scale = 1 / sqrtf(sum / float(n) + p.eps);

  const auto write = [&](int column, const Quad& quad, const Quad& w) {
    const int count = count_at(column);
    Quad result;
    LYNX_UNROLL
    for (int j = 0; j < 4; ++j) result.v[j] = (kCentered ? quad.v[j] - mean : quad.v[j]) * scale * w.v[j];
    if (kCentered && p.bias) {
      const Quad bias = load_quad(p.bias + column, count, p.aligned);
      LYNX_UNROLL
      for (int j = 0; j < 4; ++j) result.v[j] += bias.v[j];
    }
    if (p.out && count > 0) store_quad(p.out + t * n + column, result, count, p.aligned);
    if (p.rounded && column < p.quads * 4) store_rounded(p.rounded + t * p.quads * 4 + column, result, count);
  };
  LYNX_UNROLL
  for (int i = 0; i < kQuads; ++i) write((thread + i * threads) * 4, kept[i], weight[i]);
  for (int i = thread; kQuads == 0 && i < p.quads; i += threads) {
    const int count = count_at(i * 4);
    write(i * 4, load_quad(x + i * 4, count, p.aligned), load_quad(p.weight + i * 4, count, p.aligned));
  }
}

// --- round_rows, round_heads, gather_rows

struct RowsParams {
  const float* x;
  int64_t x_stride;
  const int32_t* rows;
  float* out;
  uint16_t* rounded;
  int num_rows, num_columns, quads;
  bool aligned;
};

__global__ void __launch_bounds__(kThreads) round_kernel(const __grid_constant__ RowsParams p) {
  grid_wait();
  grid_launch_dependents();
  const Place at = place_of(p.num_rows, p.num_columns, p.quads);
  if (at.row >= p.num_rows) return;
  const Quad quad = load_quad(p.x + at.row * p.x_stride + at.column, at.count, p.aligned);
  store_rounded(p.rounded + at.row * p.quads * 4 + at.column, quad, at.count);
}

struct HeadsParams {
  const float* x;
  int64_t x_stride, x_head;
  uint16_t* rounded;
  int num_heads, num_rows, num_columns, quads;  // rows: of all heads
  bool aligned;
};

__global__ void __launch_bounds__(kThreads) round_heads_kernel(const __grid_constant__ HeadsParams p) {
  grid_wait();
  grid_launch_dependents();
  const Place at = place_of(p.num_rows, p.num_columns, p.quads);
  if (at.row >= p.num_rows) return;
  const float* x = p.x + at.row / p.num_heads * p.x_stride + at.row % p.num_heads * p.x_head + at.column;
  store_rounded(p.rounded + at.row * p.quads * 4 + at.column, load_quad(x, at.count, p.aligned), at.count);
}

__global__ void __launch_bounds__(kThreads) gather_kernel(const __grid_constant__ RowsParams p) {
  grid_wait();
  grid_launch_dependents();
  const Place at = place_of(p.num_rows, p.num_columns, p.quads);
  if (at.count == 0) return;
  const Quad quad = load_quad(p.x + int64_t(p.rows[at.row]) * p.num_columns + at.column, at.count, p.aligned);
  store_quad(p.out + at.row * p.num_columns + at.column, quad, at.count, p.aligned);
}

int quads_of(int num_columns) { return int(ceil_div(num_columns, 4)); }

template <bool kCentered>
void norm(float* x, const Combine& combine, const float* weight, const float* bias, float eps, int num_rows, int hidden_size,
          float* out, uint16_t* rounded, Stream stream) {
  if (num_rows == 0 || hidden_size == 0) return;
  const bool aligned = hidden_size % 4 == 0 && aligned_16(x) && aligned_16(combine.partial) && aligned_16(weight) &&
                       aligned_16(bias) && aligned_16(out);
  const int quads = int(padded_columns(hidden_size) / 4);
  const int threads = std::min(kMaxThreads, int(round_up(quads, 32)));
  const NormParams params{combine, x, weight, bias, out, rounded, eps, hidden_size, quads, aligned};
  const int64_t kept = ceil_div(quads, threads);
  auto* kernel = kept == 1           ? norm_kernel<1, kCentered>
                 : kept == 2         ? norm_kernel<2, kCentered>
                 : kept <= kMaxQuads ? norm_kernel<kMaxQuads, kCentered>
                                     : norm_kernel<0, kCentered>;
  launch(kernel, num_rows, threads, size_t(kMaxThreads / 32 * 4 * 2), stream, params);
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

void combine(const Combine& combine, int num_rows, int hidden_size, float* x, Stream stream) {
  const bool aligned = hidden_size % 4 == 0 && aligned_16(x) && aligned_16(combine.partial);
  if (combine.partial)
    launch_per_quad(combine_kernel, {combine, x, num_rows, hidden_size, quads_of(hidden_size), aligned}, stream);
}

void rmsnorm(float* x, const Combine& combine, const float* weight, float eps, int num_rows, int hidden_size, float* out,
             uint16_t* rounded, Stream stream) {
  norm<false>(x, combine, weight, nullptr, eps, num_rows, hidden_size, out, rounded, stream);
}

void layernorm(float* x, const Combine& combine, const float* weight, const float* bias, float eps, int num_rows, int hidden_size,
               float* out, uint16_t* rounded, Stream stream) {
  norm<true>(x, combine, weight, bias, eps, num_rows, hidden_size, out, rounded, stream);
}

void round_rows(const float* x, int64_t x_stride, int num_rows, int num_columns, uint16_t* rounded, Stream stream) {
  const bool aligned = x_stride % 4 == 0 && aligned_16(x);
  launch_per_quad(round_kernel,
                  {x, x_stride, nullptr, nullptr, rounded, num_rows, num_columns, int(padded_columns(num_columns) / 4), aligned},
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

void gather_rows(const float* x, const int32_t* rows, int num_rows, int hidden_size, float* out, Stream stream) {
  const bool aligned = hidden_size % 4 == 0 && aligned_16(x) && aligned_16(out);
  launch_per_quad(gather_kernel, {x, hidden_size, rows, out, nullptr, num_rows, hidden_size, quads_of(hidden_size), aligned},
                  stream);
}

}  // namespace lynx_rt::cuda
