// q/k norm, rotary embedding and KV write; and paged attention. Contracts: Backend::qkv_post() and Backend::attention().
//
// Rows that only pad a batch to the size of a graph have slot -1 (nothing is written) and position -1 (they attend to nothing
// and get zeros).
//
// Order of the arithmetic, the same for every row whatever the other rows: keys in units of kUnitKeys, one softmax numerator per
// unit; units of a split of kSplitKeys merged in order; splits merged in order. Units and splits begin at multiples of their size
// whatever a row sees of them. So a row has the same bits in a decode step and in any prefill chunk.
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
// QkNorm::kWidth.
void qkv_post(const QkvPostArgs& args, int num_rows, const int32_t* positions, const int64_t* slots, const KvCacheView& cache,
              float* scales, Stream stream);
void mla_post(const MlaPostArgs& args, int num_rows, const int32_t* positions, const int64_t* slots, const KvCacheView& cache,
              Stream stream);

// One block's work for each kv head: `rows` consecutive rows of one sequence, over one split of the keys or over all of them.
// rows = 0 is no work (graphs are padded with it).
struct AttentionTile {
  int32_t row, rows;  // rows * (A / G) <= kTileQueries, or rows = 1
  int32_t sequence;   // of block_tables
  int32_t split;      // -1 = all of the keys, and the result goes to `out`
  int32_t partial;    // where the result of a split goes
};

// The work of a step, made on the host: rows of their own get one tile per split, so that a long context spreads over the device;
// neighbouring rows of a sequence share tiles over all of the keys. Those over all of the keys come first, then the rows' last
// splits, then the splits before, and so on: what a window sees is at the front, and attention() launches no more.
struct AttentionPlan {
  std::vector<AttentionTile> tiles;
  std::vector<int32_t> split_sequences;  // scratch
  std::vector<int32_t> first_partial;    // [T + 1] partials of row t are [t], .. [t + 1] - 1; none where its tile writes `out`
};
// `batch` in host memory. Rows whose splits would pass max_partials in all are not split: slower, with the same bits.
void plan_attention(const BatchView& batch, int group, int max_partials, AttentionPlan& plan);

struct PagedAttentionArgs {
  const float* q;  // [T, q_stride], bf16 where it enters the product
  int64_t q_stride;
  int num_rows;
  int num_heads;  // A
  float scale;
  const int32_t* positions;     // [T]
  const int32_t* block_tables;  // [S, max_blocks]
  int64_t max_blocks;
  KvCacheView cache;             // bfloat16; any block_size
  int window = 0, chunk = 0;     // as lynx_rt::AttentionArgs has them
  const float* sinks = nullptr;  // [A] or null
  const AttentionTile* tiles;
  int num_tiles;
  const int32_t* first_partial;  // [T + 1]
  int num_partials;              // of the launch, 0 = no row is split: nothing is merged
  float* partial;                // [num_partials, A, Dv + 2] scratch
  float* out;                    // [T, A * Dv], or null
  uint16_t* rounded;             // [T, padded_columns(A * Dv)] bf16 of out, or null
};
// D and Dv: even, at most 576 and 512; multiples of 8 load asynchronously. Either of out and rounded may be null. Throws
// kUnsupported naming a head size, page size or group that there is no kernel for.
void attention(const PagedAttentionArgs& args, Stream stream);
int64_t attention_shared_bytes(int64_t head_dim);  // of a block

}  // namespace lynx_rt::cuda
