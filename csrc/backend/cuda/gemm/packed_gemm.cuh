// The main loop of linear, gate_up and down: blocks of 16 packed weight rows (packed.h) times a tile of tokens, float32 sums.
//
// Work split. Weights are the M side of mma.m16n8k16 and tokens the N side, so that a tile of one token wastes multiplications but
// no memory traffic. A CTA computes one job (some blocks of weight rows, one tile) at a time. Each of its warps owns a contiguous
// range of the blocks of 32 columns and sums it in order; the warps' sums are added in shared memory, in order of the warps. The
// ranges depend on K alone, so an element's bits do not depend on the tile, its size, or the position in it.
// The grid is persistent: a CTA takes jobs with a static stride, and a warp starts the weight loads of its next job before the sums
// of the current one are added.
// Memory traffic of a job: each weight once, bypassing the first-level cache; tile * K * 2 bytes of tokens, from L2. In flight per
// warp: kDepth * kRowBlocks KB of bf16 weights, of codes as much less as they have fewer bits.
// Limits: x below 64 GiB; no more than 2^30 jobs.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "backend/cuda/gemm/expert_ffn.h"
#include "backend/cuda/gemm/packed.h"
#include "backend/cuda/gemm/packed_weights.cuh"
#include "backend/cuda/runtime/launch.h"
#include "backend/cuda/runtime/ptx.cuh"
#include "base/error.h"

namespace lynx_rt::cuda {

inline constexpr int kTokenBlock = 8;  // tokens of one mma

// padded_columns() / kBlockColumns, which device code cannot call.
__device__ inline int column_blocks(int num_columns) { return int((unsigned(num_columns) + kBlockColumns - 1) / kBlockColumns); }

// Threads per SM for which there are enough registers with tiles of this many token blocks; launch bounds are computed from it. Codes
// take more registers to unpack, and more blocks in flight, since they have fewer bytes.
constexpr int threads_per_sm(int bits, int token_blocks, int warps, bool interleaved) {
  if (bits == 8 && token_blocks == 4 && (warps == 4 || interleaved)) return 384;  // down(), gate_up(): they would spill with 512
  return bits == 16 && token_blocks == 1 ? 768 : token_blocks <= 4 ? 512 : 256;
}

// Blocks of columns that a warp has in flight with two blocks of rows, as far as there are registers.
constexpr int pipeline_depth(int bits, int token_blocks) { return token_blocks > 1 || bits == 16 ? 2 : bits == 8 ? 3 : 5; }

// The product of one job, by the whole CTA. kInterleaved: the row blocks share an array, as gate and up do. kBits: PackedForm::bits.
template <int kBits, int kRowBlocks, int kTokenBlocks, int kWarps, int kDepth, bool kInterleaved>
class PackedGemm {
 public:
  using Weights = std::conditional_t<kBits == 16, PlainWeights<kRowBlocks, kDepth, kInterleaved>,
                                     CodeWeights<kBits, kRowBlocks, kDepth, kInterleaved>>;
  static constexpr int kThreads = 32 * kWarps, kRows = kBlockRows * kRowBlocks, kTokens = kTokenBlock * kTokenBlocks;
  static constexpr int kCtasPerSm = threads_per_sm(kBits, kTokenBlocks, kWarps, kInterleaved) / kThreads;

  __device__ explicit PackedGemm(int num_columns) {
    blocks_ = column_blocks(num_columns);
    begin_ = blocks_ * warp_id() / kWarps;
    count_ = blocks_ * (warp_id() + 1) / kWarps - begin_;
  }

  // Starts loading the first weights of a job. Weights are constants, so this may come before grid_wait().
  __device__ void prefetch(const typename Weights::Rows& rows) {
    weights_.start(rows, begin_);
    LYNX_UNROLL
    for (int s = 0; s < kDepth; ++s)
      if (s < count_) weights_.load(s, s);
  }

  // Computes the warp's part of the job of the last prefetch(). rows[j] is the row of x for token lane / 4 of block j. All must exist:
  // rows that are no token of the tile are computed, too, and ignored.
  __device__ void multiply(const uint16_t* x, const int (&rows)[kTokenBlocks]) {
    LYNX_UNROLL
    for (int i = 0; i < kRowBlocks; ++i) {
      LYNX_UNROLL
      for (int j = 0; j < kTokenBlocks; ++j) {
        LYNX_UNROLL
        for (int r = 0; r < 4; ++r) sums_[i][j][r] = 0;
      }
    }
    Words4 tokens[kDepth][kTokenBlocks];
    uint32_t at[kTokenBlocks];  // offsets in words of 16 bytes, which take half the registers of pointers
    LYNX_UNROLL
    for (int j = 0; j < kTokenBlocks; ++j) at[j] = (uint32_t(rows[j]) * blocks_ + begin_) * 4 + lane_id() % 4;
    LYNX_UNROLL
    for (int s = 0; s < kDepth; ++s)
      if (s < count_) load_tokens(x, at, s, tokens[s]);

    for (int left = count_; left > 0; left -= kDepth) {
      LYNX_UNROLL
      for (int s = 0; s < kDepth; ++s) {
        if (s < left)
          weights_.use(s, [&](auto first, const auto& fragments) { add_product<decltype(first)::value>(fragments, tokens[s]); });
        if (s + kDepth < left) {
          weights_.load(s, s + kDepth);
          load_tokens(x, at, s + kDepth, tokens[s]);
        }
      }
      weights_.advance();
      LYNX_UNROLL
      for (int j = 0; j < kTokenBlocks; ++j) at[j] += kDepth * 4;
    }
  }

  // Stores the warp's sums in shared memory, for sum().
  __device__ void share() {
    sync_block();  // all have read the sums of the last job
    float* mine = shared() + warp_id() * kWarpFloats + lane_id();
    LYNX_UNROLL
    for (int i = 0; i < kRowBlocks; ++i) {
      LYNX_UNROLL
      for (int j = 0; j < kTokenBlocks; ++j) {
        LYNX_UNROLL
        for (int r = 0; r < 4; ++r) mine[i * kBlockFloats + j * kTileFloats + r * kLaneFloats] = sums_[i][j][r];
      }
    }
    sync_block();  // sums of all warps
  }

  // Returns element (row, token) of row block i, after share().
  __device__ static float sum(int i, int row, int token) {
    const int lane = row % 8 * 4 + token % 8 / 2, r = row / 8 * 2 + token % 2;
    const float* at = shared() + i * kBlockFloats + token / 8 * kTileFloats + r * kLaneFloats + lane;
    float sum = at[0];
    LYNX_UNROLL
    for (int warp = 1; warp < kWarps; ++warp) sum += at[warp * kWarpFloats];
    return sum;
  }

 private:
  // Strides of the sums in shared memory. The extra floats keep the 16 or 32 rows of a token in different banks.
  static constexpr int kLaneFloats = 33, kTileFloats = 4 * kLaneFloats, kBlockFloats = kTokenBlocks * kTileFloats + 1;
  static constexpr int kWarpFloats = kRowBlocks * kBlockFloats;

 public:
  static constexpr size_t kSharedBytes = size_t(kWarps) * kWarpFloats * sizeof(float);

 private:
  __device__ static float* shared() { return reinterpret_cast<float*>(dynamic_shared()); }

  __device__ static void load_tokens(const uint16_t* x, const uint32_t (&at)[kTokenBlocks], int block,
                                     Words4 (&tokens)[kTokenBlocks]) {
    LYNX_UNROLL
    for (int j = 0; j < kTokenBlocks; ++j) tokens[j] = load_16(reinterpret_cast<const Words4*>(x) + at[j] + block * 4);
  }
  // Adds the products of row blocks kFirst .. kFirst + kCount - 1.
  template <int kFirst, int kCount>
  __device__ void add_product(const Words4 (&weights)[kCount][2], const Words4 (&tokens)[kTokenBlocks]) {
    LYNX_UNROLL
    for (int step = 0; step < 2; ++step) {
      LYNX_UNROLL
      for (int i = 0; i < kCount; ++i) {
        const Words4 w = weights[i][step];
        const uint32_t a[4] = {w.x, w.y, w.z, w.w};
        LYNX_UNROLL
        for (int j = 0; j < kTokenBlocks; ++j) {
          const uint32_t b[2] = {step ? tokens[j].z : tokens[j].x, step ? tokens[j].w : tokens[j].y};
          mma_bf16(sums_[kFirst + i][j], a, b);
        }
      }
    }
  }

  int blocks_;         // number of blocks of 32 columns
  int begin_, count_;  // the warp's blocks of 32 columns
  Weights weights_;
  float sums_[kRowBlocks][kTokenBlocks][4];
};

// Returns tile `index` of the list; without a list, `size` rows of 0 .. num_rows - 1.
__device__ inline Tile tile_at(const Tile* tiles, int index, int size, int num_rows) {
  if (tiles) return tiles[index];
  const int first = index * size;
  return {0, first, num_rows - first < size ? num_rows - first : size};
}

// Returns a member of an expert's entry; without a table, of the dense MLP's.
template <class T>
__device__ inline T of_expert(const ExpertEntry* experts, const ExpertEntry& dense, int expert, T ExpertEntry::* member) {
  return experts ? experts[expert].*member : dense.*member;
}

// The order of jobs: tiles are taken in groups, and in a group all tiles of a unit (block of weight rows) follow each other. So CTAs
// that run at the same time share the weights of a unit and the rows of a group's tiles in L2.
struct JobPlace {
  int tile, unit;
};
__device__ inline JobPlace job_place(int job, int num_tiles, int num_units) {
  constexpr int kGroup = 16;
  const int group = job / (kGroup * num_units), first = group * kGroup;
  const int size = num_tiles - first < kGroup ? num_tiles - first : kGroup;
  job -= first * num_units;
  return {first + job % size, job / size};
}

// Returns the first job from `job` on, in steps of the grid, whose expert has kBits; at least num_jobs where there is none.
template <int kBits>
__device__ inline int next_job(const FfnArgs& a, PackedForm ExpertEntry::* form, const Tile* tiles, int job, int num_jobs,
                               int num_tiles, int num_units) {
  while (a.bits != kBits && job < num_jobs &&
         (a.experts[tiles[job_place(job, num_tiles, num_units).tile].expert].*form).bits != kBits)
    job += int(gridDim.x);
  return job;
}

// Calls start.template operator()<token blocks>() for tiles of `rows` rows: 8, 16, 32 or 64.
template <class Start>
void dispatch_tile_rows(int rows, Start start) {
  switch (rows) {
    case 8: return start.template operator()<1>();
    case 16: return start.template operator()<2>();
    case 32: return start.template operator()<4>();
    default: return start.template operator()<8>();
  }
}

// Checks the arguments of a product of the experts and calls start.template operator()<bits, token blocks>(dense, most) for all bits
// that they have: `dense` is the number of tiles where there is no list, `most` the most tiles that a list can have.
template <class Start>
void start_ffn(const char* what, const FfnArgs& args, Start start) {
  if (args.num_rows < 0) invalid(what, "rows: expected at least 0, got ", args.num_rows);
  if (args.hidden_size < 1 || args.width < 1)
    invalid(what, "sizes: expected at least 1, got hidden size ", args.hidden_size, ", width ", args.width);
  const bool routed = args.pair_of_sorted;
  if (routed && args.top_k < 1) invalid(what, "experts per token: expected at least 1, got ", args.top_k);
  if (args.num_rows == 0) return;
  dispatch_tile_rows(ffn_tile_rows(routed, args.num_rows), [&]<int kTokenBlocks>() {
    const int64_t dense = ceil_div(args.num_rows, kTokenBlocks * kTokenBlock);
    const int64_t most = routed ? int64_t(args.num_rows) * args.top_k : dense;  // a pair per tile
    if (args.bits & 16) start.template operator()<16, kTokenBlocks>(dense, most);
    if (args.bits & 8) start.template operator()<8, kTokenBlocks>(dense, most);
    if (args.bits & 4) start.template operator()<4, kTokenBlocks>(dense, most);
  });
}

// Returns the number of CTAs of a persistent grid. Throws where a job's number or an offset into x would not fit in its type.
inline unsigned persistent_blocks(const char* what, int64_t x_rows, int64_t num_columns, int64_t tiles, int64_t units,
                                  int num_sms, int ctas_per_sm) {
  constexpr int64_t kMaxBytes = int64_t{1} << 36;  // 2^32 words of 16 bytes
  if (x_rows > kMaxBytes / (2 * padded_columns(num_columns)))
    invalid(what, "x: expected at most 64 GiB, got ", x_rows, " rows of ", num_columns);
  if (num_sms < 1) invalid(what, "SMs: expected at least 1, got ", num_sms);
  if (tiles > (int64_t{1} << 30) / units) invalid(what, "jobs: expected at most 2^30, got ", tiles, " * ", units);
  return unsigned(std::min(tiles * units, int64_t(num_sms) * ctas_per_sm));
}

}  // namespace lynx_rt::cuda
