// q/k norm, rotary embedding and KV write; and paged attention. Contracts: Backend::qkv_post(), mla_post() and attention().
//
// Rows that only pad a batch to the size of a graph have slot -1 (nothing is written) and position -1 (they attend to nothing
// and get zeros).
//
// Order of the arithmetic, which is independent of the other rows: a softmax of each unit of kUnitKeys keys; the units of a split of
// kSplitKeys keys merged in order; the splits merged in order. Units and splits begin at multiples of their size, whichever of their
// keys a row sees. So a row has the same bits in a decode step and in any prefill chunk.
#pragma once
#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/runtime/runtime.h"

namespace lynx_rt::cuda {

inline constexpr int kUnitKeys = 64, kSplitKeys = 256;
inline constexpr int kTileQueries = 16;  // (row, query head of one kv head) pairs that share a pass over the keys
inline constexpr int kMaxKeyDim = 576, kMaxValueDim = 512;  // D and Dv of attention()

// T rows; pointers to device memory, norm weights float32. D is even and at most 512. `scales` [T, 2] is scratch for
// QkNorm::kWidth. positions [T] is read for the temperature alone; rope_rows [T]: rows of the rope table, which may be the positions.
void qkv_post(const QkvPostArgs& args, int num_rows, const int32_t* positions, const int32_t* rope_rows, const int64_t* slots,
              const KvCacheView& cache, float* scales, Stream stream);
void mla_post(const MlaPostArgs& args, int num_rows, const int32_t* rope_rows, const int64_t* slots, const KvCacheView& cache,
              Stream stream);

// The work of one block for each kv head: `rows` consecutive rows of one sequence, over one split of the keys or over all of them.
// A tile with rows = 0, which pads a graph, has no work.
struct AttentionTile {
  int32_t row, rows;  // rows * (A / G) <= kTileQueries, or rows = 1
  int32_t sequence;   // row of block_tables
  int32_t split;      // -1 = all of the keys, and the result goes to `out`
  int32_t partial;    // row of `partial` for the result of a split
};

// The work of a step, made on the host. A row that is its sequence's only one gets one tile per split, so that a long context spreads
// over the device; neighbouring rows of a sequence share tiles over all of the keys. The tiles over all of the keys come first, then
// the rows' last splits, then the splits before those, and so on: with a window attention() only launches the first tiles.
struct AttentionPlan {
  std::vector<AttentionTile> tiles;
  std::vector<int32_t> split_sequences;  // scratch
  std::vector<int32_t> first_partial;    // [T + 1] partials of row t are [t], .. [t + 1] - 1; none where its tile writes `out`
};
// `batch` is in host memory. A row is not split where the splits of all rows would then be more than max_partials: that is slower,
// with the same bits.
void plan_attention(const BatchView& batch, int group, int max_partials, AttentionPlan& plan);

struct PagedAttentionArgs {
  const float* q;  // [T, q_stride]; rounded to bf16 for the product
  int64_t q_stride;
  int num_rows;
  int num_heads;  // A
  float scale;
  const int32_t* positions;     // [T]
  const int32_t* block_tables;  // [S, max_blocks]
  int64_t max_blocks;
  KvCacheView cache;             // bfloat16; any block_size
  int window = 0, chunk = 0;     // see lynx_rt::AttentionArgs
  const float* sinks = nullptr;  // [A] or null
  bool gated = false;            // see lynx_rt::AttentionArgs
  // [S + 1] first row of each sequence: then a row sees all keys up to its sequence's last row, without window or chunk; null = causal
  const int32_t* query_start = nullptr;
  const AttentionTile* tiles;
  int num_tiles;
  const int32_t* first_partial;  // [T + 1]
  int num_partials;              // 0 = no row is split, and nothing is merged
  float* partial;                // [num_partials, A, Dv + 2] scratch
  float* out;                    // [T, A * Dv], or null
  uint16_t* rounded;             // [T, padded_columns(A * Dv)] bf16 of out, or null
};
// D and Dv are even, at most 576 and 512; multiples of 8 are loaded asynchronously. Either of out and rounded may be null. Throws
// kUnsupported naming a head size, page size or group that has no kernel.
void attention(const PagedAttentionArgs& args, Stream stream);
int64_t attention_shared_bytes(int64_t head_dim);  // shared memory of a block

}  // namespace lynx_rt::cuda
