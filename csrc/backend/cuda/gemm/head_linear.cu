// The products of multi-head latent attention, in which each head has a matrix of its own.
//
// Work split: packed_gemm.cuh. A job is a tile of rows times 32 weight rows of one head. CTAs have 4 warps: K is short, and more
// warps would spend their time on the sum across warps. Memory traffic: all weights once per 16 tiles, 2 A N K bytes; x from L2; out
// is written once. Limits: packed_gemm.cuh, where a row of x is that of all heads.
#include "backend/cuda/gemm/linear.h"
#include "backend/cuda/gemm/packed_gemm.cuh"

namespace lynx_rt::cuda {

namespace {

constexpr int kWarps = 4, kDepth = 2;

struct HeadLinearParams {
  HeadLinearArgs args;
  int num_tiles, units_of_head;
  int64_t head_bytes;
};

template <int kTokenBlocks>
using HeadGemm = PackedGemm<16, 2, kTokenBlocks, kWarps, kDepth, false>;

template <int kTokenBlocks>
__global__ void __launch_bounds__(32 * kWarps, HeadGemm<kTokenBlocks>::kCtasPerSm)
    head_linear_kernel(const __grid_constant__ HeadLinearParams p) {
  using Gemm = HeadGemm<kTokenBlocks>;
  const HeadLinearArgs& a = p.args;
  const int num_units = a.num_heads * p.units_of_head, num_jobs = p.num_tiles * num_units;
  Gemm gemm(a.num_columns);
  const auto prefetch = [&](int job) {
    const int unit = job_place(job, p.num_tiles, num_units).unit, first = unit % p.units_of_head * Gemm::kRows;
    const unsigned char* matrix = static_cast<const unsigned char*>(a.weights) + unit / p.units_of_head * p.head_bytes;
    // The first block is loaded again if the head has no second one; those sums are not stored.
    const int block = first / kBlockRows, second = first + kBlockRows < a.weight_rows ? block + 1 : block;
    gemm.prefetch(Gemm::Weights::rows(matrix, {}, a.weight_rows, column_blocks(a.num_columns), block, second));
  };
  prefetch(int(blockIdx.x));
  grid_wait();  // x is complete, and no earlier kernel still reads out
  grid_launch_dependents();

  for (int job = int(blockIdx.x); job < num_jobs; job += int(gridDim.x)) {
    const JobPlace place = job_place(job, p.num_tiles, num_units);
    const Tile tile = tile_at(nullptr, place.tile, Gemm::kTokens, a.num_rows);
    const int head = place.unit / p.units_of_head, first = place.unit % p.units_of_head * Gemm::kRows;
    int rows[kTokenBlocks];
    LYNX_UNROLL
    for (int j = 0; j < kTokenBlocks; ++j) {
      const int token = j * kTokenBlock + lane_id() / 4;
      rows[j] = (tile.first + (token < tile.count ? token : tile.count - 1)) * a.num_heads + head;
    }
    gemm.multiply(a.x, rows);
    if (job + int(gridDim.x) < num_jobs) prefetch(job + int(gridDim.x));
    gemm.share();

    for (int i = int(threadIdx.x); i < tile.count * Gemm::kRows; i += Gemm::kThreads) {
      const int row = i % Gemm::kRows, token = i / Gemm::kRows;
      if (first + row >= a.weight_rows) continue;
      a.out[(tile.first + token) * a.out_stride + head * a.out_head + first + row] =
          Gemm::sum(row / kBlockRows, row % kBlockRows, token);
    }
  }
}

template <int kTokenBlocks>
void start(const HeadLinearArgs& args, int num_sms, Stream stream) {
  using Gemm = HeadGemm<kTokenBlocks>;
  const int64_t tiles = ceil_div(args.num_rows, Gemm::kTokens), units = ceil_div(args.weight_rows, Gemm::kRows);
  const unsigned blocks = persistent_blocks("head_linear", int64_t(args.num_rows) * args.num_heads, args.num_columns, tiles,
                                            units * args.num_heads, num_sms, Gemm::kCtasPerSm);
  launch(head_linear_kernel<kTokenBlocks>, blocks, Gemm::kThreads, Gemm::kSharedBytes, stream,
         HeadLinearParams{args, int(tiles), int(units), packed_bytes(args.weight_rows, args.num_columns)});
}

}  // namespace

void head_linear(const HeadLinearArgs& args, int num_sms, Stream stream) {
  if (args.num_rows < 0) invalid("head_linear", "rows: expected at least 0, got ", args.num_rows);
  if (args.num_heads < 1 || args.weight_rows < 1 || args.num_columns < 1)
    invalid("head_linear", "sizes: expected at least 1, got ", args.num_heads, " heads, [", args.weight_rows, ", ",
            args.num_columns, "]");
  if (args.num_rows == 0) return;
  dispatch_tile_rows(dense_tile_rows(args.num_rows), [&]<int kTokenBlocks>() { start<kTokenBlocks>(args, num_sms, stream); });
}

}  // namespace lynx_rt::cuda
