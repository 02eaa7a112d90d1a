// rmsnorm(), add_rmsnorm() and layernorm().
//
// Work split: a block per row. For H <= 8192 the block keeps the row in registers between the sums and the scaling, else it reads the
// row again. The number of threads, and so the order of the sums, depends on H only: quads of a thread in order, lanes by a
// butterfly, warps in order.
// Memory traffic per row: reads 4 H bytes, writes 4 H for `out` and 2 H for `rounded` where they are wanted, plus combine's traffic
// where a sum is added.
#include <algorithm>
#include <cmath>

#include "backend/cuda/gemm/packed.h"
#include "backend/cuda/rows/add_experts.cuh"
#include "backend/cuda/rows/norm.h"
#include "backend/cuda/rows/per_quad.cuh"

namespace lynx_rt::cuda {

namespace {

constexpr int kMaxThreads = 512;  // threads of a row
constexpr int kMaxQuads = 4;      // quads of a row that a thread keeps

struct NormParams {
  ExpertSum sum = {};
  float* x = nullptr;
  const float* weight = nullptr;
  const float* bias = nullptr;  // layernorm's bias, or null
  float* out = nullptr;
  uint16_t* rounded = nullptr;
  float eps = 0;
  float* residual = nullptr;       // add_rmsnorm's x, or null
  const float* scale = nullptr;    // add_rmsnorm's factor, or null
  bool accumulate = false;         // add_rmsnorm adds to x
  int num_columns = 0, quads = 0;  // quads of a row, with the zeros after it
  bool aligned = false;
};

// Returns the sum of all threads' values, in every thread. `of_warp` is shared memory for this call alone.
__device__ float sum_of_block(float sum, float* of_warp) {
  for (int bit = 16; bit > 0; bit /= 2) sum += shuffle_xor(kFullWarp, sum, bit);
  if (lane_id() == 0) of_warp[warp_id()] = sum;
  sync_block();  // of_warp
  sum = 0;
  for (int warp = 0; warp < int(blockDim.x) / 32; ++warp) sum += of_warp[warp];
  return sum;
}

enum class Kind { kRms, kAddRms, kLayer };

// kQuads: quads that a thread keeps; 0 = it reads its quads again.
template <int kQuads, Kind kKind>
__global__ void __launch_bounds__(kMaxThreads) norm_kernel(const __grid_constant__ NormParams p) {
  constexpr int kKept = kQuads ? kQuads : 1;
  constexpr bool kCentered = kKind == Kind::kLayer;
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
    Quad quad = load_quad(x + column, p.sum.partial && !p.sum.accumulate ? 0 : count, p.aligned);
    if (p.sum.partial && count > 0) {
      quad = add_experts(p.sum, t, n, column, count, p.aligned, quad);
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
    if constexpr (kKind == Kind::kAddRms) {
      float* to = p.residual + t * n + column;
      const Quad old = load_quad(to, p.accumulate ? count : 0, p.aligned);
      const float by = p.scale ? *p.scale : 1;
      LYNX_UNROLL
      for (int j = 0; j < 4; ++j) result.v[j] = (old.v[j] + result.v[j]) * by;
      if (count > 0) store_quad(to, result, count, p.aligned);
      return;
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

template <Kind kKind>
void norm(NormParams params, int num_rows, Stream stream) {
  const int hidden_size = params.num_columns;
  if (num_rows == 0 || hidden_size == 0) return;
  params.aligned = hidden_size % 4 == 0 && aligned_16(params.x) && aligned_16(params.sum.partial) && aligned_16(params.weight) &&
                   aligned_16(params.bias) && aligned_16(params.out) && aligned_16(params.residual);
  const int quads = params.quads = int(padded_columns(hidden_size) / 4);
  const int threads = std::min(kMaxThreads, int(round_up(quads, 32)));
  const int64_t kept = ceil_div(quads, threads);
  constexpr int kTwo = kKind == Kind::kAddRms ? kMaxQuads : 2;  // ptxas spills where a thread of that kernel keeps two
  auto* kernel = kept == 1           ? norm_kernel<1, kKind>
                 : kept == 2         ? norm_kernel<kTwo, kKind>
                 : kept <= kMaxQuads ? norm_kernel<kMaxQuads, kKind>
                                     : norm_kernel<0, kKind>;
  launch(kernel, num_rows, threads, size_t(kMaxThreads / 32 * 4 * 2), stream, params);
}

}  // namespace

void rmsnorm(float* x, const ExpertSum& sum, const float* weight, float eps, int num_rows, int hidden_size, float* out,
             uint16_t* rounded, Stream stream) {
  norm<Kind::kRms>({.sum = sum, .x = x, .weight = weight, .out = out, .rounded = rounded, .eps = eps, .num_columns = hidden_size},
                   num_rows, stream);
}

void add_rmsnorm(float* y, const ExpertSum& sum, const float* weight, float eps, int num_rows, int hidden_size, bool accumulate,
                 const float* scale, float* x, Stream stream) {
  norm<Kind::kAddRms>({.sum = sum,
                       .x = y,
                       .weight = weight,
                       .eps = eps,
                       .residual = x,
                       .scale = scale,
                       .accumulate = accumulate,
                       .num_columns = hidden_size},
                      num_rows, stream);
}

void layernorm(float* x, const ExpertSum& sum, const float* weight, const float* bias, float eps, int num_rows, int hidden_size,
               float* out, uint16_t* rounded, Stream stream) {
  norm<Kind::kLayer>({.sum = sum,
                      .x = x,
                      .weight = weight,
                      .bias = bias,
                      .out = out,
                      .rounded = rounded,
                      .eps = eps,
                      .num_columns = hidden_size},
                     num_rows, stream);
}

}  // namespace lynx_rt::cuda
