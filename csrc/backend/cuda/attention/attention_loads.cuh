// The state of a block of attention.cu, the merging of softmaxes, and the loads of q, K and V into shared memory.
#pragma once
#include <cmath>
#include <cstdint>

#include "backend/cuda/attention/attention.h"
#include "backend/cuda/runtime/ptx.cuh"

namespace lynx_rt::cuda::attention_tiles {

inline constexpr int kWarps = 4, kThreads = kWarps * kWarpSize;
inline constexpr int kUnits = kSplitKeys / kUnitKeys;      // units of a split
inline constexpr int kSliceColumns = 64, kRowBytes = 128;  // columns, and bytes of a key's row, of a slice in shared memory
inline constexpr int kSteps = kSliceColumns / 16;          // steps of a product over a slice's columns, and over a unit's keys
inline constexpr int kSliceBytes = kSplitKeys * kRowBytes;
static_assert(kUnits == kWarps && kUnitKeys == 16 * kSteps && kTileQueries == 16);

// The address and the columns of K or V.
struct Side {
  const uint16_t* data;
  int stride;       // elements of a token and kv head
  int columns;      // D or Dv
  int columns_end;  // rounded up to the 16 columns of a product's step
};

struct AttentionParams {
  PagedAttentionArgs args;
  Side k, v;
  int key_slices;
  int group;        // query heads per kv head
  int chunks;       // of at most 16 query heads of a group
  int64_t columns;  // of `out`
  int64_t padded;   // columns of `rounded`
};

struct alignas(8) Float2 {
  float x, y;
};

// Offsets in shared memory.
struct Layout {
  static constexpr int kKeyRows = 2 * kSliceBytes;                                 // int64 [256]
  static constexpr int kUnitState = kKeyRows + kSplitKeys * 8;                     // Float2 [4 units][16]: maximum, denominator
  static constexpr int kNumerators = kUnitState + kUnits * kTileQueries * 8;       // A fragments [4 units][4 steps][32 lanes]
  static constexpr int kQueries = kNumerators + kUnits * kSteps * kWarpSize * 16;  // A fragments [D / 16][32 lanes]
  static constexpr int bytes(int slices) { return kQueries + slices * kSteps * kWarpSize * 16; }
};

template <class T>
__device__ T* shared_array(int offset) {
  return reinterpret_cast<T*>(dynamic_shared() + offset);
}

// The tile of a block, its query heads and its keys; the same in all threads.
struct Work {
  AttentionTile tile;
  int num_queries;  // query vectors: rows * width
  int width;        // query heads
  int kv_head, first_head;
  int begin, end;  // keys [begin, end): from the first one that its first row sees to the last one that its last row sees
  int first_split, end_split;
};

// The next slice to load. A split's slices of K come first, then those of V, then those of the next split.
struct NextSlice {
  int split, part = 0, stage = 0;
};

// Returns the first key that the row at `position` sees.
__device__ inline int first_key(const PagedAttentionArgs& a, int position) {
  int first = a.window > 0 && position >= a.window ? position - a.window + 1 : 0;
  if (a.chunk > 0 && position / a.chunk * a.chunk > first) first = position / a.chunk * a.chunk;
  return first;
}

// Returns the last key that the row at `position` of a sequence sees.
__device__ inline int last_key(const PagedAttentionArgs& a, int sequence, int position) {
  return a.query_start ? a.positions[a.query_start[sequence + 1] - 1] : position;
}

// Returns whether some row of the tile sees some key of the unit.
__device__ inline bool is_seen(const Work& work, int unit_begin) {
  return unit_begin < work.end && unit_begin + kUnitKeys > work.begin;
}

struct Softmax {
  float maximum = -INFINITY, denominator = 0;
};

// The factors of the two sides of merge(); other < 0 = nothing is merged.
struct MergeWeights {
  float own, other;
};

__device__ inline MergeWeights merge(Softmax& into, float maximum, float denominator) {
  if (denominator == 0) return {1, -1};
  const float both = fmaxf(into.maximum, maximum);
  const MergeWeights w{fast_exp(into.maximum - both), fast_exp(maximum - both)};
  into.maximum = both;
  into.denominator = fmaf(into.denominator, w.own, denominator * w.other);
  return w;
}
__device__ inline float merge(float into, float v, MergeWeights w) { return w.other < 0 ? into : fmaf(into, w.own, v * w.other); }

// --- loads

// Finds where the keys of this warp's unit are in the cache, in rows of K or V. Entries after the last key are never used.
// The barrier before start_slice() makes sure that no warp still reads the entries of the last split.
__device__ inline void find_keys(const AttentionParams& p, const Work& work, int unit_begin) {
  const PagedAttentionArgs& a = p.args;
  const uint32_t page_size = uint32_t(a.cache.block_size);
  const int32_t* table = a.block_tables + work.tile.sequence * a.max_blocks;
  int64_t* rows = shared_array<int64_t>(Layout::kKeyRows) + warp_id() * kUnitKeys;
  for (int i = lane_id(); i < kUnitKeys; i += kWarpSize) {
    const uint32_t key = uint32_t(unit_begin + i), page = key / page_size;
    const int64_t block = page < a.max_blocks ? table[page] : 0;
    rows[i] = (block * a.cache.num_kv_heads + work.kv_head) * page_size + key % page_size;
  }
  sync_warp();  // rows
}

// Starts loading the next slice: this warp's 64 keys, with zeros for keys that no row sees and after the last column. The 16-byte
// pieces of a row are permuted by the key, so that eight rows of a matrix fragment are in different banks.
template <int kValueSlices>
__device__ void start_slice(const AttentionParams& p, const Work& work, NextSlice& next) {
  const int unit_begin = (next.split * kUnits + warp_id()) * kUnitKeys;
  if (next.split < work.end_split && is_seen(work, unit_begin)) {
    if (next.part == 0) find_keys(p, work, unit_begin);
    const bool is_k = next.part < p.key_slices;
    const Side& side = is_k ? p.k : p.v;
    const int piece = lane_id() % 8, column = (is_k ? next.part : next.part - p.key_slices) * kSliceColumns + piece * 8;
    const int64_t* rows = shared_array<int64_t>(Layout::kKeyRows) + warp_id() * kUnitKeys;
    unsigned char* to = dynamic_shared() + next.stage * kSliceBytes + warp_id() * kUnitKeys * kRowBytes;
    if (column < side.columns_end) {  // products read no further
      for (int i = lane_id() / 8; i < kUnitKeys; i += kWarpSize / 8) {
        const int key = unit_begin + i;
        const bool present = key >= work.begin && key < work.end && column < side.columns;
        const uint16_t* from = present ? side.data + rows[i] * side.stride + column : side.data;
        void* place = to + i * kRowBytes + (piece ^ (i % 8)) * 16;
        if (side.stride % 8 == 0) {
          copy_async_16(place, from, present ? 16 : 0);
        } else {
          for (int j = 0; j < 4; ++j)
            static_cast<uint32_t*>(place)[j] =
                present && column + 2 * j < side.columns ? reinterpret_cast<const uint32_t*>(from)[j] : 0;
        }
      }
    }
  }
  copy_commit();
  next.stage ^= 1;
  if (++next.part == p.key_slices + kValueSlices) next.part = 0, ++next.split;
}

__device__ inline uint32_t query_pair(const AttentionParams& p, const Work& work, int query, int column) {
  if (query >= work.num_queries || column >= p.args.cache.head_dim) return 0;
  const int64_t row = work.tile.row + query / work.width, head = work.first_head + query % work.width;
  const float* q = p.args.q + row * p.args.q_stride + head * (p.args.gated ? 2 : 1) * p.args.cache.head_dim + column;
  return to_bf16x2(q[0], q[1]);
}

// Stores q in shared memory as A fragments, one per step of 16 columns.
__device__ inline void load_queries(const AttentionParams& p, const Work& work) {
  Words4* fragments = shared_array<Words4>(Layout::kQueries);
  for (int i = int(threadIdx.x); i < p.key_slices * kSteps * kWarpSize; i += kThreads) {
    const int query = i % kWarpSize / 4, column = i / kWarpSize * 16 + i % 4 * 2;
    fragments[i] = {query_pair(p, work, query, column), query_pair(p, work, query + 8, column),
                    query_pair(p, work, query, column + 8), query_pair(p, work, query + 8, column + 8)};
  }
}

__device__ inline void load_fragment(uint32_t (&a)[4], const Words4* from) {
  const Words4 v = *from;
  a[0] = v.x, a[1] = v.y, a[2] = v.z, a[3] = v.w;
}

}  // namespace lynx_rt::cuda::attention_tiles
