// The first product of the experts, with their activation: hidden = bf16(activation(x . gate, x . up)), or of gate alone.
//
// Work split: packed_gemm.cuh. A job is a tile of places times 16 gate rows and the 16 up rows of the same numbers, so that one
// thread has both sums of an element; or of 16 gate rows, where there is no up. CTAs have 8 warps. The number of tiles is only known on the device, so the grid does not
// depend on it. The first CTA prefetches the table of experts into L2, for down() too. Experts of 16, 8 and 4 bits are multiplied by
// kernels of their own, each of which takes the tiles of its experts. Memory traffic: packed_bytes() of gate and up per active expert
// (while its places fill one group of tiles); rows of x from L2; hidden is written once. Limits: packed_gemm.cuh.
#include <cmath>

#include "backend/cuda/gemm/packed_gemm.cuh"

namespace lynx_rt::cuda {

namespace {

constexpr int kWarps = 8;

struct GateUpParams {
  GateUpArgs args;
  int num_tiles;  // where there is no list of tiles
};

template <int kBits, int kTokenBlocks, int kParts>
using GateUpGemm = PackedGemm<kBits, kParts, kTokenBlocks, kWarps, pipeline_depth(kBits, kTokenBlocks), kParts == 2>;

__device__ float gelu_tanh(float x) {
  constexpr float kTwiceRoot = 1.5957691216f;  // 2 * sqrt(2 / pi); gelu(x) = x / (1 + e^-2u)
  return x / (1.0f + fast_exp(-kTwiceRoot * (x + 0.044715f * (x * x * x))));
}

__device__ float activate(const FfnRule& ffn, float gate, float up) {
  if (ffn.activation == Activation::kSilu) return gate / (1.0f + fast_exp(-gate)) * up;  // where exp is infinite the result is -0
  if (ffn.activation == Activation::kGeluTanh) return gelu_tanh(gate) * up;
  // A NaN passes these comparisons unchanged.
  const float g = gate > ffn.limit ? ffn.limit : gate, u = up > ffn.limit ? ffn.limit : up < -ffn.limit ? -ffn.limit : up;
  return g / (1.0f + fast_exp(-ffn.alpha * g)) * (u + 1.0f);
}

// The activation of gate alone.
__device__ float activate(const FfnRule& ffn, float gate) {
  if (ffn.activation == Activation::kGeluTanh) return gelu_tanh(gate);
  if (ffn.activation == Activation::kGelu) return 0.5f * gate * (1.0f + accurate_erf(gate * 0.70710678f));
  return gate < 0 ? 0.0f : gate * gate;  // a NaN stays one
}

// kParts: 2 of gate and up, 1 of gate alone.
template <int kBits, int kTokenBlocks, int kParts>
__global__ void __launch_bounds__(32 * kWarps, GateUpGemm<kBits, kTokenBlocks, kParts>::kCtasPerSm)
    gate_up_kernel(const __grid_constant__ GateUpParams p) {
  using Gemm = GateUpGemm<kBits, kTokenBlocks, kParts>;
  const GateUpArgs& a = p.args;
  // The weights of all layers pass through the second-level cache between two steps, and evict this layer's table.
  if (a.experts && blockIdx.x == 0)
    for (int at = int(threadIdx.x) * 128; at < a.num_experts * int(sizeof(ExpertEntry)); at += Gemm::kThreads * 128)
      prefetch_line(reinterpret_cast<const char*>(a.experts) + at);
  grid_wait();  // x and the lists are complete, and no earlier kernel still reads hidden
  grid_launch_dependents();
  const Tile* tiles = a.pair_of_sorted ? a.tiles : nullptr;
  const int num_tiles = tiles ? *a.num_tiles : p.num_tiles;
  const int num_units = (a.width + kBlockRows - 1) / kBlockRows, num_jobs = num_tiles * num_units;
  const int x_blocks = column_blocks(a.hidden_size), hidden_columns = column_blocks(a.width) * kBlockColumns;

  JobPlace place;
  Tile tile;
  Gemm gemm(a.hidden_size);
  const auto start = [&](int job) {
    place = job_place(job, num_tiles, num_units);
    tile = tile_at(tiles, place.tile, Gemm::kTokens, a.num_rows);
    const void* weights = of_expert(a.experts, a.dense, tile.expert, &ExpertEntry::gate_up);
    const PackedForm form = of_expert(a.experts, a.dense, tile.expert, &ExpertEntry::gate_up_form);
    gemm.prefetch(Gemm::Weights::rows(weights, form, a.width, x_blocks, place.unit, place.unit));
  };
  const auto next = [&](int job) {
    return next_job<kBits>(a, &ExpertEntry::gate_up_form, tiles, job, num_jobs, num_tiles, num_units);
  };
  int job = next(int(blockIdx.x));
  if (job < num_jobs) start(job);

  while (job < num_jobs) {
    int rows[kTokenBlocks];
    LYNX_UNROLL
    for (int j = 0; j < kTokenBlocks; ++j) {
      const int token = j * kTokenBlock + lane_id() / 4;
      rows[j] = tile.first + (token < tile.count ? token : tile.count - 1);
      if (a.pair_of_sorted) rows[j] = a.pair_of_sorted[rows[j]] / a.top_k;
    }
    gemm.multiply(a.x, rows);
    const Tile done = tile;
    const int unit = place.unit;
    job = next(job + int(gridDim.x));
    if (job < num_jobs) start(job);
    gemm.share();

    for (int i = int(threadIdx.x); i < done.count * kBlockRows; i += Gemm::kThreads) {
      const int row = i % kBlockRows, token = i / kBlockRows, column = unit * kBlockRows + row;
      float gate = Gemm::sum(0, row, token), up = kParts == 2 ? Gemm::sum(kParts - 1, row, token) : 0;
      if (a.pair_scale) {
        const float scale = a.pair_scale[a.pair_of_sorted[done.first + token]];
        gate *= scale, up *= scale;
      }
      if (a.biased && column < a.width) {
        gate += of_expert(a.experts, a.dense, done.expert, &ExpertEntry::gate_bias)[column];
        if (kParts == 2) up += of_expert(a.experts, a.dense, done.expert, &ExpertEntry::up_bias)[column];
      }
      const float value = kParts == 2 ? activate(a.ffn, gate, up) : activate(a.ffn, gate);
      uint16_t* hidden = a.hidden + int64_t(done.first + token) * hidden_columns + column;
      *hidden = column < a.width ? to_bf16(value) : uint16_t{0};
      // The last block of 32 columns may have one block of 16 weight rows.
      if (unit == num_units - 1 && num_units % 2) hidden[kBlockRows] = 0;
    }
  }
}

template <int kBits, int kTokenBlocks, int kParts>
void start(const GateUpArgs& args, int64_t dense, int64_t most, int num_sms, Stream stream) {
  using Gemm = GateUpGemm<kBits, kTokenBlocks, kParts>;
  const unsigned blocks = persistent_blocks("gate_up", args.num_rows, args.hidden_size, most, ceil_div(args.width, kBlockRows),
                                            num_sms, Gemm::kCtasPerSm);
  launch(gate_up_kernel<kBits, kTokenBlocks, kParts>, blocks, Gemm::kThreads, Gemm::kSharedBytes, stream,
         GateUpParams{args, int(dense)});
}

}  // namespace

void gate_up(const GateUpArgs& args, int num_sms, Stream stream) {
  start_ffn("gate_up", args, [&]<int kBits, int kTokenBlocks>(int64_t dense, int64_t most) {
    if (args.gated)
      start<kBits, kTokenBlocks, 2>(args, dense, most, num_sms, stream);
    else
      start<kBits, kTokenBlocks, 1>(args, dense, most, num_sms, stream);
  });
}

}  // namespace lynx_rt::cuda
