// The second product of the experts: partial = hidden . down, by pair. The kernel that reads a row next applies the router weights and
// sums over the row's pairs (rows/add_experts.cuh), which keeps the order fixed without atomics.
//
// Work split: packed_gemm.cuh. A job is a tile of places times 32 rows of H. CTAs have 4 warps: I is short, and more warps would
// spend their time on the sum across warps. The number of tiles is only known on the device, so the grid does not depend on it.
// Experts of 16, 8 and 4 bits are multiplied by kernels of their own. Memory traffic: packed_bytes() per active expert (while its places
// fill one group of tiles); hidden from L2; partial is written once.
// Limits: packed_gemm.cuh.
#include "backend/cuda/gemm/packed_gemm.cuh"

namespace lynx_rt::cuda {

namespace {

constexpr int kWarps = 4;

struct DownParams {
  DownArgs args;
  int num_tiles;  // where there is no list of tiles
};

template <int kBits, int kTokenBlocks>
using DownGemm = PackedGemm<kBits, 2, kTokenBlocks, kWarps, pipeline_depth(kBits, kTokenBlocks), false>;

template <int kBits, int kTokenBlocks>
__global__ void __launch_bounds__(32 * kWarps, DownGemm<kBits, kTokenBlocks>::kCtasPerSm)
    down_kernel(const __grid_constant__ DownParams p) {
  using Gemm = DownGemm<kBits, kTokenBlocks>;
  const DownArgs& a = p.args;
  grid_wait();  // hidden is complete, and no earlier kernel still reads partial
  grid_launch_dependents();
  const Tile* tiles = a.pair_of_sorted ? a.tiles : nullptr;
  const int num_tiles = tiles ? *a.num_tiles : p.num_tiles;
  const int num_units = (a.hidden_size + Gemm::kRows - 1) / Gemm::kRows, num_jobs = num_tiles * num_units;
  const int blocks = column_blocks(a.width);

  JobPlace place;
  Tile tile;
  Gemm gemm(a.width);
  const auto start = [&](int job) {
    place = job_place(job, num_tiles, num_units);
    tile = tile_at(tiles, place.tile, Gemm::kTokens, a.num_rows);
    const void* weights = of_expert(a.experts, a.dense, tile.expert, &ExpertEntry::down);
    const PackedForm form = of_expert(a.experts, a.dense, tile.expert, &ExpertEntry::down_form);
    // The first block is loaded again if H has no second one; those sums are not stored.
    const int first = 2 * place.unit, second = first * kBlockRows + kBlockRows < a.hidden_size ? first + 1 : first;
    gemm.prefetch(Gemm::Weights::rows(weights, form, a.hidden_size, blocks, first, second));
  };
  const auto next = [&](int job) {
    return next_job<kBits>(a, &ExpertEntry::down_form, tiles, job, num_jobs, num_tiles, num_units);
  };
  int job = next(int(blockIdx.x));
  if (job < num_jobs) start(job);

  while (job < num_jobs) {
    int rows[kTokenBlocks];
    LYNX_UNROLL
    for (int j = 0; j < kTokenBlocks; ++j) {
      const int token = j * kTokenBlock + lane_id() / 4;
      rows[j] = tile.first + (token < tile.count ? token : tile.count - 1);
    }
    gemm.multiply(a.hidden, rows);
    const Tile done = tile;
    const int unit = place.unit;
    job = next(job + int(gridDim.x));
    if (job < num_jobs) start(job);
    gemm.share();

    for (int i = int(threadIdx.x); i < done.count * Gemm::kRows; i += Gemm::kThreads) {
      const int row = i % Gemm::kRows, token = i / Gemm::kRows, n = unit * Gemm::kRows + row;
      if (n >= a.hidden_size) continue;
      const int pair = a.pair_of_sorted ? a.pair_of_sorted[done.first + token] : done.first + token;
      float value = Gemm::sum(row / kBlockRows, row % kBlockRows, token);
      if (a.biased) value += of_expert(a.experts, a.dense, done.expert, &ExpertEntry::down_bias)[n];
      a.partial[int64_t(pair) * a.hidden_size + n] = value;
    }
  }
}

template <int kBits, int kTokenBlocks>
void start(const DownArgs& args, int64_t dense, int64_t most, int num_sms, Stream stream) {
  using Gemm = DownGemm<kBits, kTokenBlocks>;
  const unsigned blocks = persistent_blocks("down", args.pair_of_sorted ? most : args.num_rows, args.width, most,
                                            ceil_div(args.hidden_size, Gemm::kRows), num_sms, Gemm::kCtasPerSm);
  launch(down_kernel<kBits, kTokenBlocks>, blocks, Gemm::kThreads, Gemm::kSharedBytes, stream, DownParams{args, int(dense)});
}

}  // namespace

void down(const DownArgs& args, int num_sms, Stream stream) {
  start_ffn("down", args, [&]<int kBits, int kTokenBlocks>(int64_t dense, int64_t most) {
    start<kBits, kTokenBlocks>(args, dense, most, num_sms, stream);
  });
}

}  // namespace lynx_rt::cuda
