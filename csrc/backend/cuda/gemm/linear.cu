// Matrix products of a step's rows: query/key/value, output projection, logits.
//
// Work split: packed_gemm.cuh. A job is a tile of rows times 32 weight rows of one part, or 16 weight rows with more loads in flight
// where there would be fewer jobs of 32 than SMs. CTAs have 8 warps. Parts of 16, 8 and 4 bits are kernels of their own.
// Memory traffic: all weights once per 16 tiles, packed_bytes(); x from L2; out is written once, and read once to accumulate.
// Limits: packed_gemm.cuh.
#include "backend/cuda/gemm/linear.h"

#include "backend/cuda/gemm/packed_gemm.cuh"

namespace lynx_rt::cuda {

namespace {

constexpr int kWarps = 8;

struct LinearParams {
  LinearArgs args;
  int num_tiles, num_units;
};

// The part and the first weight row of a job.
struct PartRows {
  int part, row;
};
template <int kRows>
__device__ PartRows part_rows(const LinearArgs& a, int unit) {
  for (int part = 0;; ++part) {
    const int units = (a.parts[part].rows + kRows - 1) / kRows;
    if (unit < units) return {part, unit * kRows};
    unit -= units;
  }
}

template <class Gemm>
__device__ void prefetch(const LinearParams& p, int job, Gemm& gemm) {
  const PartRows at = part_rows<Gemm::kRows>(p.args, job_place(job, p.num_tiles, p.num_units).unit);
  const LinearArgs::Part& part = p.args.parts[at.part];
  // The first block is loaded again if the part has no second one; those sums are not stored.
  const int first = at.row / kBlockRows, second = at.row + kBlockRows < part.rows ? first + 1 : first;
  gemm.prefetch(Gemm::Weights::rows(part.weight, part.form, part.rows, column_blocks(p.args.num_columns), first, second));
}

constexpr int depth(int bits, int row_blocks, int token_blocks) {
  if (bits == 16 && row_blocks == 1) return token_blocks <= 2 ? 4 : 3;
  return pipeline_depth(bits, token_blocks);
}

template <int kBits, int kRowBlocks, int kTokenBlocks>
using LinearGemm = PackedGemm<kBits, kRowBlocks, kTokenBlocks, kWarps, depth(kBits, kRowBlocks, kTokenBlocks), false>;

template <int kBits, int kRowBlocks, int kTokenBlocks>
__global__ void __launch_bounds__(32 * kWarps, LinearGemm<kBits, kRowBlocks, kTokenBlocks>::kCtasPerSm)
    linear_kernel(const __grid_constant__ LinearParams p) {
  using Gemm = LinearGemm<kBits, kRowBlocks, kTokenBlocks>;
  const LinearArgs& a = p.args;
  const int num_jobs = p.num_tiles * p.num_units;
  Gemm gemm(a.num_columns);
  prefetch(p, int(blockIdx.x), gemm);
  grid_wait();  // x is complete, and no earlier kernel still reads out
  grid_launch_dependents();

  for (int job = int(blockIdx.x); job < num_jobs; job += int(gridDim.x)) {
    const JobPlace place = job_place(job, p.num_tiles, p.num_units);
    const Tile tile = tile_at(nullptr, place.tile, Gemm::kTokens, a.num_rows);
    int rows[kTokenBlocks];
    LYNX_UNROLL
    for (int j = 0; j < kTokenBlocks; ++j) {
      const int token = j * kTokenBlock + lane_id() / 4;
      rows[j] = tile.first + (token < tile.count ? token : tile.count - 1);
    }
    gemm.multiply(a.x, rows);
    if (job + int(gridDim.x) < num_jobs) prefetch(p, job + int(gridDim.x), gemm);
    gemm.share();

    const PartRows at = part_rows<Gemm::kRows>(a, place.unit);
    const LinearArgs::Part& part = a.parts[at.part];
    for (int i = int(threadIdx.x); i < tile.count * Gemm::kRows; i += Gemm::kThreads) {
      const int row = i % Gemm::kRows, token = i / Gemm::kRows;
      if (at.row + row >= part.rows) continue;
      float value = Gemm::sum(row / kBlockRows, row % kBlockRows, token);
      if (part.bias) value += part.bias[at.row + row];
      value *= a.scale;
      if (a.row_gate) value *= 1.0f / (1.0f + fast_exp(-a.row_gate[tile.first + token]));
      float* out = a.out + (tile.first + token) * a.out_stride + part.out_column + at.row + row;
      *out = a.accumulate ? *out + value : value;
    }
  }
}

template <int kBits, int kRowBlocks, int kTokenBlocks>
void start(const LinearArgs& args, int64_t num_units, int num_sms, Stream stream) {
  using Gemm = LinearGemm<kBits, kRowBlocks, kTokenBlocks>;
  const int64_t tiles = ceil_div(args.num_rows, Gemm::kTokens);
  const unsigned blocks =
      persistent_blocks("linear", args.num_rows, args.num_columns, tiles, num_units, num_sms, Gemm::kCtasPerSm);
  launch(linear_kernel<kBits, kRowBlocks, kTokenBlocks>, blocks, Gemm::kThreads, Gemm::kSharedBytes, stream,
         LinearParams{args, int(tiles), int(num_units)});
}

// The parts of `args` whose values have kBits, by one kernel.
template <int kBits>
void start_parts(LinearArgs args, int num_sms, Stream stream) {
  const int all = args.num_parts;
  int64_t units_16 = 0, units_32 = 0;
  args.num_parts = 0;
  for (int i = 0; i < all; ++i) {
    if (args.parts[i].form.bits != kBits) continue;
    const LinearArgs::Part part = args.parts[args.num_parts++] = args.parts[i];
    units_16 += ceil_div(part.rows, 16);
    units_32 += ceil_div(part.rows, 32);
  }
  if (units_16 == 0) return;
  const int rows = dense_tile_rows(args.num_rows);
  const bool few = ceil_div(args.num_rows, rows) * units_32 < num_sms;
  dispatch_tile_rows(rows, [&]<int kTokenBlocks>() {
    if constexpr (kTokenBlocks <= (kBits == 16 ? 4 : 1))
      if (few) return start<kBits, 1, kTokenBlocks>(args, units_16, num_sms, stream);
    start<kBits, 2, kTokenBlocks>(args, units_32, num_sms, stream);
  });
}

}  // namespace

void linear(const LinearArgs& args, int num_sms, Stream stream) {
  if (args.num_rows < 0) invalid("linear", "rows: expected at least 0, got ", args.num_rows);
  if (args.num_columns < 1) invalid("linear", "columns: expected at least 1, got ", args.num_columns);
  if (args.num_parts < 1 || args.num_parts > LinearArgs::kMaxParts)
    invalid("linear", "parts: expected 1..", LinearArgs::kMaxParts, ", got ", args.num_parts);
  for (int i = 0; i < args.num_parts; ++i)
    if (args.parts[i].rows < 0) invalid("linear", "weight rows: expected at least 0, got ", args.parts[i].rows);
  if (args.num_rows == 0) return;
  start_parts<16>(args, num_sms, stream);
  start_parts<8>(args, num_sms, stream);
  start_parts<4>(args, num_sms, stream);
}

}  // namespace lynx_rt::cuda
