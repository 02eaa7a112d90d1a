// The main loop of linear, gate_up and down: blocks of 16 packed weight rows (packed.h) times a tile of tokens, float32 sums.
//
// Work split. Weights are the M side of mma.m16n8k16 and tokens the N side, so that a tile of one token wastes multiplications but
// no memory traffic. A CTA computes one job (some blocks of weight rows, one tile) at a time. Each of its warps owns a contiguous
// range of the blocks of 32 columns and sums it in order; the warps' sums are added in shared memory, in order of the warps. The
// ranges depend on K alone, so an element's bits do not depend on the tile, its size, or the position in it.
// The grid is persistent: a CTA takes jobs with a static stride, and a warp starts the weight loads of its next job before the sums
// of the current one are added.
// Memory traffic of a job: each weight once, bypassing the first-level cache; tile * K * 2 bytes of tokens, from L2. In flight per
// warp: kDepth * kRowBlocks KB of weights.
// Limits: x below 64 GiB; no more than 2^30 jobs.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "backend/cuda/gemm/expert_ffn.h"
#include "backend/cuda/gemm/packed.h"
#include "backend/cuda/runtime/launch.h"
#include "backend/cuda/runtime/ptx.cuh"
#include "base/error.h"

namespace lynx_rt::cuda {

inline constexpr int kStepBytes = 512;  // one fragment of 16 x 16 weights
inline constexpr int kTokenBlock = 8;   // tokens of one mma

// padded_columns() / kBlockColumns, which device code cannot call.
__device__ inline int column_blocks(int num_columns) { return int((unsigned(num_columns) + kBlockColumns - 1) / kBlockColumns); }

// Threads per SM for which there are enough registers with tiles of this many token blocks; launch bounds are computed from it.
constexpr int threads_per_sm(int token_blocks) { return token_blocks == 1 ? 768 : token_blocks <= 4 ? 512 : 256; }

// The product of one job, by the whole CTA. kInterleaved: the row blocks share an array, step by step, as gate and up do.
template <int kRowBlocks, int kTokenBlocks, int kWarps, int kDepth, bool kInterleaved>
class PackedGemm {
 public:
  static constexpr int kThreads = 32 * kWarps, kRows = kBlockRows * kRowBlocks, kTokens = kTokenBlock * kTokenBlocks;
  static constexpr int kArrays = kInterleaved ? 1 : kRowBlocks;
  static constexpr int kCtasPerSm = threads_per_sm(kTokenBlocks) / kThreads;

  __device__ explicit PackedGemm(int num_columns) {
    blocks_ = column_blocks(num_columns);
    begin_ = blocks_ * warp_id() / kWarps;
    count_ = blocks_ * (warp_id() + 1) / kWarps - begin_;
  }

  // Starts loading the first weights of a job; rows[i] points to its i-th block of rows, or to the array that the blocks share.
  // Weights are constants, so this may come before grid_wait().
  __device__ void prefetch(const unsigned char* const (&rows)[kArrays]) {
    LYNX_UNROLL
    for (int i = 0; i < kArrays; ++i) weights_[i] = rows[i] + int64_t(begin_) * kBlockBytes + lane_id() * 16;
    LYNX_UNROLL
    for (int s = 0; s < kDepth; ++s)
      if (s < count_) load_weights(s, s);
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
        if (s < left) add_product(fragments_[s], tokens[s]);
        if (s + kDepth < left) {
          load_weights(s, s + kDepth);
          load_tokens(x, at, s + kDepth, tokens[s]);
        }
      }
      LYNX_UNROLL
      for (int i = 0; i < kArrays; ++i) weights_[i] += kDepth * kBlockBytes;
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
  static constexpr int kStride = kInterleaved ? kRowBlocks * kStepBytes : kStepBytes;  // from one step to the next
  static constexpr int kBlockBytes = 2 * kStride;                                      // bytes of 32 columns
  // Strides of the sums in shared memory. The extra floats keep the 16 or 32 rows of a token in different banks.
  static constexpr int kLaneFloats = 33, kTileFloats = 4 * kLaneFloats, kBlockFloats = kTokenBlocks * kTileFloats + 1;
  static constexpr int kWarpFloats = kRowBlocks * kBlockFloats;

 public:
  static constexpr size_t kSharedBytes = size_t(kWarps) * kWarpFloats * sizeof(float);

 private:
  __device__ static float* shared() { return reinterpret_cast<float*>(dynamic_shared()); }

  __device__ void load_weights(int s, int block) {
    LYNX_UNROLL
    for (int step = 0; step < 2; ++step) {
      LYNX_UNROLL
      for (int i = 0; i < kRowBlocks; ++i)
        fragments_[s][i][step] =
            load_once(weights_[i % kArrays] + block * kBlockBytes + step * kStride + i / kArrays * kStepBytes);
    }
  }
  __device__ static void load_tokens(const uint16_t* x, const uint32_t (&at)[kTokenBlocks], int block,
                                     Words4 (&tokens)[kTokenBlocks]) {
    LYNX_UNROLL
    for (int j = 0; j < kTokenBlocks; ++j) tokens[j] = load_16(reinterpret_cast<const Words4*>(x) + at[j] + block * 4);
  }
  __device__ void add_product(const Words4 (&weights)[kRowBlocks][2], const Words4 (&tokens)[kTokenBlocks]) {
    LYNX_UNROLL
    for (int step = 0; step < 2; ++step) {
      LYNX_UNROLL
      for (int i = 0; i < kRowBlocks; ++i) {
        const Words4 w = weights[i][step];
        const uint32_t a[4] = {w.x, w.y, w.z, w.w};
        LYNX_UNROLL
        for (int j = 0; j < kTokenBlocks; ++j) {
          const uint32_t b[2] = {step ? tokens[j].z : tokens[j].x, step ? tokens[j].w : tokens[j].y};
          mma_bf16(sums_[i][j], a, b);
        }
      }
    }
  }

  int blocks_;                               // number of blocks of 32 columns
  int begin_, count_;                        // the warp's blocks of 32 columns
  const unsigned char* weights_[kArrays];    // weights of the current block of columns
  Words4 fragments_[kDepth][kRowBlocks][2];  // weights being loaded: the next kDepth blocks of columns
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

// Checks the arguments of a product of the experts and calls start.template operator()<token blocks>(dense, most): `dense` is the
// number of tiles where there is no list, `most` the most tiles that a list can have.
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
    start.template operator()<kTokenBlocks>(dense, routed ? int64_t(args.num_rows) * args.top_k : dense);  // a pair per tile
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
