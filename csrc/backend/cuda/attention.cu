// Paged attention over a bfloat16 KV cache on tensor cores.
//
// Work split: a block of 4 warps per (tile, kv head, chunk of 16 query heads where the group is wider). The tile's up to 16 query
// vectors are the 16 rows of every product. Keys go by splits of 256: warp w computes the scores of unit w (64 keys) and their
// softmax numerators; then all warps multiply them with V, warp w for columns 16 w .. 16 w + 15 of every 64, unit by unit.
// K and V pass through shared memory in slices of 256 keys x 64 columns (32 KB): the slices of K, then those of V, then the next
// split's; two are under way or in use at any time. A warp loads the keys of its own unit, so slices of K need no block barrier.
//
// Arithmetic, the same whatever the tile: a score is the float32 sum over D in steps of 16, times the scale; a unit's numerators
// are exp(score - maximum of the unit) rounded to bf16, and its denominator the float32 sum of the rounded values, so that
// the weights of a row sum to 1. merge() adds units in order to their split, and splits in order to the row, here or
// in merge_kernel. What is empty for a row has denominator 0 and is skipped, so that it leaves all bits alone.
//
// Memory traffic: K and V of the sequence once per tile and chunk, 4 D bytes per key and kv head, from L2 after the first; a
// split row moves 8 (D + 2) bytes per query head and split through `partial`.
// Shared memory: 74 KB (D <= 64) to 84 KB (D = 256), two blocks per SM on sm_80, sm_90 and sm_100, one on sm_86, sm_89 and
// sm_120. Limits: D even and at most 256; D that is no multiple of 8 takes plain loads. V of a key that a row may not see is
// multiplied by 0, so that a NaN or infinity there spoils the rows before it in the same tile; behind the tile's last key, V is
// not read.
#include <climits>
#include <cmath>

#include "backend/cuda/attention.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/packed.h"
#include "backend/cuda/ptx.cuh"
#include "base/error.h"

namespace lynx_rt::cuda {

namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarpSize;
constexpr int kUnits = kSplitKeys / kUnitKeys;      // of a split
constexpr int kSliceColumns = 64, kRowBytes = 128;  // of a slice in shared memory
constexpr int kSteps = kSliceColumns / 16;          // of a product over a slice's columns, and over a unit's keys
constexpr int kSliceBytes = kSplitKeys * kRowBytes;
constexpr int kMaxHeadDim = 256;
static_assert(kUnits == kWarps && kUnitKeys == 16 * kSteps && kTileQueries == 16);

struct AttentionParams {
  AttentionArgs args;
  int group;        // query heads per kv head
  int chunks;       // of at most 16 query heads of a group
  int columns_end;  // D rounded up to the 16 columns of a product's step
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

// What a block works on; the same in all threads.
struct Work {
  AttentionTile tile;
  int num_queries;  // query vectors: rows * width
  int width;        // query heads
  int kv_head, first_head;
  int end;                      // keys of the longest row
  int first_split, num_slices;  // slices of K and V to go through
};

struct Softmax {
  float maximum = -INFINITY, denominator = 0;
};

// How merge() weighs the two sides; other < 0 = nothing is merged.
struct MergeWeights {
  float own, other;
};

__device__ MergeWeights merge(Softmax& into, float maximum, float denominator) {
  if (denominator == 0) return {1, -1};
  const float both = fmaxf(into.maximum, maximum);
  const MergeWeights w{fast_exp(into.maximum - both), fast_exp(maximum - both)};
  into.maximum = both;
  into.denominator = fmaf(into.denominator, w.own, denominator * w.other);
  return w;
}
__device__ float merge(float into, float v, MergeWeights w) { return w.other < 0 ? into : fmaf(into, w.own, v * w.other); }

// --- loads

// Where the keys of this warp's unit lie in the cache, in elements. Those behind the end are never used.
// The barrier in front of start_slice() has ended the reads of the split before.
__device__ void find_keys(const AttentionParams& p, const Work& work, int unit_begin) {
  const AttentionArgs& a = p.args;
  const uint32_t page_size = uint32_t(a.cache.block_size);
  const int32_t* table = a.block_tables + work.tile.sequence * a.max_blocks;
  int64_t* rows = shared_array<int64_t>(Layout::kKeyRows) + warp_id() * kUnitKeys;
  for (int i = lane_id(); i < kUnitKeys; i += kWarpSize) {
    const uint32_t key = uint32_t(unit_begin + i), page = key / page_size;
    const int64_t block = page < a.max_blocks ? table[page] : 0;
    rows[i] = ((block * a.cache.num_kv_heads + work.kv_head) * page_size + key % page_size) * a.cache.head_dim;
  }
  sync_warp();  // rows
}

// Starts loading slice `index` of the block's sequence of slices: this warp's 64 keys, zeros behind the end of keys and columns.
// 16-byte pieces of a row are permuted by the key, so that eight rows of a matrix fragment lie in different banks.
template <int kSlices>
__device__ void start_slice(const AttentionParams& p, const Work& work, int index) {
  const int part = index % (2 * kSlices), d = int(p.args.cache.head_dim);
  const int unit_begin = ((work.first_split + index / (2 * kSlices)) * kUnits + warp_id()) * kUnitKeys;
  if (index < work.num_slices && unit_begin < work.end) {
    if (part == 0) find_keys(p, work, unit_begin);
    const int piece = lane_id() % 8, column = part % kSlices * kSliceColumns + piece * 8;
    const uint16_t* cache = static_cast<const uint16_t*>(part < kSlices ? p.args.cache.k : p.args.cache.v);
    const int64_t* rows = shared_array<int64_t>(Layout::kKeyRows) + warp_id() * kUnitKeys;
    unsigned char* to = dynamic_shared() + index % 2 * kSliceBytes + warp_id() * kUnitKeys * kRowBytes;
    if (column < p.columns_end) {  // products end there
      for (int i = lane_id() / 8; i < kUnitKeys; i += kWarpSize / 8) {
        const bool present = unit_begin + i < work.end && column < d;
        const uint16_t* from = present ? cache + rows[i] + column : cache;
        void* place = to + i * kRowBytes + (piece ^ (i % 8)) * 16;
        if (d % 8 == 0) {
          copy_async_16(place, from, present ? 16 : 0);
        } else {
          for (int j = 0; j < 4; ++j)
            static_cast<uint32_t*>(place)[j] = present && column + 2 * j < d ? reinterpret_cast<const uint32_t*>(from)[j] : 0;
        }
      }
    }
  }
  copy_commit();
}

__device__ uint32_t query_pair(const AttentionParams& p, const Work& work, int query, int column) {
  if (query >= work.num_queries || column >= p.args.cache.head_dim) return 0;
  const int64_t row = work.tile.row + query / work.width, head = work.first_head + query % work.width;
  const float* q = p.args.q + row * p.args.q_stride + head * p.args.cache.head_dim + column;
  return to_bf16x2(q[0], q[1]);
}

// q as A fragments, one per step of 16 columns.
template <int kSlices>
__device__ void load_queries(const AttentionParams& p, const Work& work) {
  Words4* fragments = shared_array<Words4>(Layout::kQueries);
  for (int i = int(threadIdx.x); i < kSlices * kSteps * kWarpSize; i += kThreads) {
    const int query = i % kWarpSize / 4, column = i / kWarpSize * 16 + i % 4 * 2;
    fragments[i] = {query_pair(p, work, query, column), query_pair(p, work, query + 8, column),
                    query_pair(p, work, query, column + 8), query_pair(p, work, query + 8, column + 8)};
  }
}

__device__ void load_fragment(uint32_t (&a)[4], const Words4* from) {
  const Words4 v = *from;
  a[0] = v.x, a[1] = v.y, a[2] = v.z, a[3] = v.w;
}

// --- products

// score[n] += q . k of the unit's keys 8 n .. 8 n + 7 over the columns of slice `slice`, which lies in `keys`.
__device__ void multiply_keys(float (&score)[8][4], const unsigned char* keys, int slice, int d) {
  const Words4* queries = shared_array<Words4>(Layout::kQueries) + slice * kSteps * kWarpSize;
  const int row = lane_id() / 16 * 8 + lane_id() % 8, half = lane_id() / 8 % 2;
  for (int step = 0; step < kSteps && slice * kSliceColumns + step * 16 < d; ++step) {
    uint32_t a[4];
    load_fragment(a, queries + step * kWarpSize + lane_id());
    LYNX_UNROLL
    for (int n = 0; n < 8; n += 2) {
      uint32_t k[4];
      load_matrix_x4(k, keys + (n * 8 + row) * kRowBytes + ((step * 2 + half) ^ (row % 8)) * 16);
      mma_bf16(score[n], a, {k[0], k[1]});
      mma_bf16(score[n + 1], a, {k[2], k[3]});
    }
  }
}

// The softmax of one unit: numerators as A fragments, maximum and denominator of each query. last[h] is the position of query
// lane / 4 + 8 h: the last key that it sees.
__device__ void store_numerators(float (&score)[8][4], float scale, int unit_begin, const int (&last)[2]) {
  float maximum[2] = {-INFINITY, -INFINITY}, denominator[2] = {0, 0};
  LYNX_UNROLL
  for (int n = 0; n < 8; ++n) {
    LYNX_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int key = unit_begin + n * 8 + lane_id() % 4 * 2 + i % 2;
      score[n][i] = key <= last[i / 2] ? score[n][i] * scale : -INFINITY;
      maximum[i / 2] = fmaxf(maximum[i / 2], score[n][i]);
    }
  }
  LYNX_UNROLL
  for (int h = 0; h < 2; ++h) {
    maximum[h] = fmaxf(maximum[h], shuffle_xor(kFullWarp, maximum[h], 1));
    maximum[h] = fmaxf(maximum[h], shuffle_xor(kFullWarp, maximum[h], 2));
  }
  // Without a key: exp(-inf - 0) = 0. fmaxf() passes over NaN, which comes through here and in the denominator.
  const float base[2] = {maximum[0] == -INFINITY ? 0 : maximum[0], maximum[1] == -INFINITY ? 0 : maximum[1]};
  uint32_t numerator[8][2];
  LYNX_UNROLL
  for (int n = 0; n < 8; ++n) {
    LYNX_UNROLL
    for (int h = 0; h < 2; ++h) {
      const uint32_t pair = to_bf16x2(fast_exp(score[n][2 * h] - base[h]), fast_exp(score[n][2 * h + 1] - base[h]));
      numerator[n][h] = pair;
      denominator[h] += from_bf16(uint16_t(pair));
      denominator[h] += from_bf16(uint16_t(pair >> 16));
    }
  }
  LYNX_UNROLL
  for (int h = 0; h < 2; ++h) {
    denominator[h] += shuffle_xor(kFullWarp, denominator[h], 1);
    denominator[h] += shuffle_xor(kFullWarp, denominator[h], 2);
  }
  Words4* fragments = shared_array<Words4>(Layout::kNumerators) + warp_id() * kSteps * kWarpSize + lane_id();
  LYNX_UNROLL
  for (int step = 0; step < kSteps; ++step)
    fragments[step * kWarpSize] = {numerator[2 * step][0], numerator[2 * step][1], numerator[2 * step + 1][0],
                                   numerator[2 * step + 1][1]};
  Float2* state = shared_array<Float2>(Layout::kUnitState) + warp_id() * kTileQueries;
  if (lane_id() % 4 == 0) {
    state[lane_id() / 4] = {maximum[0], denominator[0]};
    state[lane_id() / 4 + 8] = {maximum[1], denominator[1]};
  }
}

// sum[n] = numerators . v of one unit for columns 8 n .. 8 n + 7 of this warp's 16, from a slice of V.
__device__ void multiply_values(float (&sum)[2][4], const unsigned char* values, int unit) {
  const Words4* fragments = shared_array<Words4>(Layout::kNumerators) + unit * kSteps * kWarpSize + lane_id();
  const int row = unit * kUnitKeys + lane_id() % 16, piece = warp_id() * 2 + lane_id() / 16;
  LYNX_UNROLL
  for (int step = 0; step < kSteps; ++step) {
    uint32_t a[4], v[4];
    load_fragment(a, fragments + step * kWarpSize);
    load_matrix_x4_transposed(v, values + (row + step * 16) * kRowBytes + (piece ^ (row % 8)) * 16);
    mma_bf16(sum[0], a, {v[0], v[1]});
    mma_bf16(sum[1], a, {v[2], v[3]});
  }
}

// --- results

// Zeros behind the last head of a row of `rounded`; by the whole block.
__device__ void pad_row(const AttentionParams& p, int64_t row) {
  for (int64_t c = p.columns + threadIdx.x; c < p.padded; c += blockDim.x) p.args.rounded[row * p.padded + c] = 0;
}

__device__ void store_result(const AttentionParams& p, int64_t row, int64_t column, Float2 v) {
  if (p.args.out) *reinterpret_cast<Float2*>(p.args.out + row * p.columns + column) = v;
  if (p.args.rounded) *reinterpret_cast<uint32_t*>(p.args.rounded + row * p.padded + column) = to_bf16x2(v.x, v.y);
}

// Row of `partial`: D sums, maximum, denominator.
__device__ float* partial_row(const AttentionArgs& a, int64_t partial, int head) {
  return a.partial + (partial * a.num_heads + head) * (a.cache.head_dim + 2);
}

template <int kSlices>
__global__ void __launch_bounds__(kThreads, 2) attention_kernel(const __grid_constant__ AttentionParams p) {
  grid_wait();
  grid_launch_dependents();
  const AttentionArgs& a = p.args;
  const int d = int(a.cache.head_dim), chunk = int(blockIdx.y) % p.chunks;
  Work work;
  work.tile = a.tiles[blockIdx.x];
  if (work.tile.rows == 0) return;
  work.kv_head = int(blockIdx.y) / p.chunks;
  work.first_head = work.kv_head * p.group + chunk * kTileQueries;
  work.width = p.group - chunk * kTileQueries < kTileQueries ? p.group - chunk * kTileQueries : kTileQueries;
  work.num_queries = work.tile.rows * work.width;
  work.end = a.positions[work.tile.row + work.tile.rows - 1] + 1;
  const bool is_split = work.tile.split >= 0;
  work.first_split = is_split ? work.tile.split : 0;
  const int num_splits = is_split ? 1 : (work.end + kSplitKeys - 1) / kSplitKeys;
  work.num_slices = num_splits * 2 * kSlices;

  start_slice<kSlices>(p, work, 0);
  start_slice<kSlices>(p, work, 1);
  load_queries<kSlices>(p, work);
  int query[2], last[2];  // the rows of the products that this lane holds
  LYNX_UNROLL
  for (int h = 0; h < 2; ++h) {
    query[h] = lane_id() / 4 + 8 * h;
    last[h] = query[h] < work.num_queries ? a.positions[work.tile.row + query[h] / work.width] : -1;
  }
  sync_block();  // queries

  Softmax row[2];
  float result[kSlices][2][4] = {};  // of columns 64 s + 16 warp + 8 n .. + 7
  int index = 0;
  for (int s = work.first_split; s < work.first_split + num_splits; ++s) {
    const int split_begin = s * kSplitKeys, unit_begin = split_begin + warp_id() * kUnitKeys;
    float score[8][4] = {};
    for (int slice = 0; slice < kSlices; ++slice, ++index) {
      copy_wait<1>();
      sync_warp();  // slice of K
      if (unit_begin < work.end)
        multiply_keys(score, dynamic_shared() + index % 2 * kSliceBytes + warp_id() * kUnitKeys * kRowBytes, slice, d);
      sync_warp();  // all have read it
      start_slice<kSlices>(p, work, index + 2);
    }
    if (unit_begin < work.end) store_numerators(score, a.scale, unit_begin, last);

    MergeWeights unit_weights[kUnits][2], split_weights[2];
    LYNX_UNROLL
    for (int slice = 0; slice < kSlices; ++slice, ++index) {
      copy_wait<1>();
      sync_block();  // slice of V; before the first, numerators and states of the units
      if (slice == 0) {
        const Float2* state = shared_array<Float2>(Layout::kUnitState);
        LYNX_UNROLL
        for (int h = 0; h < 2; ++h) {
          Softmax split;
          LYNX_UNROLL
          for (int unit = 0; unit < kUnits; ++unit) {
            Float2 u = {-INFINITY, 0};
            if (split_begin + unit * kUnitKeys < work.end) u = state[unit * kTileQueries + query[h]];
            unit_weights[unit][h] = merge(split, u.x, u.y);
          }
          split_weights[h] = merge(row[h], split.maximum, split.denominator);
        }
      }
      if (slice * kSliceColumns + warp_id() * 16 < d) {
        float split_sum[2][4] = {};
        LYNX_UNROLL
        for (int unit = 0; unit < kUnits; ++unit) {
          if (split_begin + unit * kUnitKeys >= work.end) break;
          float sum[2][4] = {};
          multiply_values(sum, dynamic_shared() + index % 2 * kSliceBytes, unit);
          LYNX_UNROLL
          for (int i = 0; i < 8; ++i)
            split_sum[i / 4][i % 4] = merge(split_sum[i / 4][i % 4], sum[i / 4][i % 4], unit_weights[unit][i / 2 % 2]);
        }
        LYNX_UNROLL
        for (int i = 0; i < 8; ++i) {
          float& r = result[slice][i / 4][i % 4];
          r = is_split ? split_sum[i / 4][i % 4] : merge(r, split_sum[i / 4][i % 4], split_weights[i / 2 % 2]);
        }
      }
      sync_block();  // all have read it
      start_slice<kSlices>(p, work, index + 2);
    }
  }

  LYNX_UNROLL
  for (int h = 0; h < 2; ++h) {
    if (query[h] >= work.num_queries) continue;
    const int64_t t = work.tile.row + query[h] / work.width;
    const int head = work.first_head + query[h] % work.width;
    float* partial = is_split ? partial_row(a, work.tile.partial, head) : nullptr;
    LYNX_UNROLL
    for (int i = 0; i < kSlices * 2; ++i) {
      const int column = i / 2 * kSliceColumns + warp_id() * 16 + i % 2 * 8 + lane_id() % 4 * 2;
      if (column >= d) break;
      const Float2 v = {result[i / 2][i % 2][2 * h], result[i / 2][i % 2][2 * h + 1]};
      if (is_split) {
        *reinterpret_cast<Float2*>(partial + column) = v;
      } else {
        const bool empty = last[h] < 0;
        store_result(p, t, int64_t(head) * d + column,
                     {empty ? 0 : v.x / row[h].denominator, empty ? 0 : v.y / row[h].denominator});
      }
    }
    if (is_split && warp_id() == 0 && lane_id() % 4 == 0)
      *reinterpret_cast<Float2*>(partial + d) = {row[h].maximum, row[h].denominator};
  }
  if (a.rounded && !is_split && blockIdx.y == gridDim.y - 1)
    for (int i = 0; i < work.tile.rows; ++i) pad_row(p, work.tile.row + i);
}

// A block per (row, query head), a thread per pair of columns; rows without partials have been written already.
__global__ void __launch_bounds__(kMaxHeadDim / 2) merge_kernel(const __grid_constant__ AttentionParams p) {
  grid_wait();
  grid_launch_dependents();
  constexpr int kBatch = 16;  // splits whose loads are under way together
  const AttentionArgs& a = p.args;
  const int t = int(blockIdx.x), head = int(blockIdx.y), d = int(a.cache.head_dim), column = int(threadIdx.x) * 2;
  const int begin = a.first_partial[t], end = a.first_partial[t + 1];
  if (begin == end) return;
  if (a.rounded && head == a.num_heads - 1) pad_row(p, t);
  if (column >= d) return;
  Softmax row;
  Float2 result = {0, 0};
  for (int first = begin; first < end; first += kBatch) {
    Float2 state[kBatch], sum[kBatch];
    LYNX_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      const float* partial = partial_row(a, first + i < end ? first + i : begin, head);
      state[i] = *reinterpret_cast<const Float2*>(partial + d);
      sum[i] = *reinterpret_cast<const Float2*>(partial + column);
    }
    LYNX_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      if (first + i >= end) break;
      const MergeWeights w = merge(row, state[i].x, state[i].y);
      result = {merge(result.x, sum[i].x, w), merge(result.y, sum[i].y, w)};
    }
  }
  store_result(p, t, int64_t(head) * d + column, {result.x / row.denominator, result.y / row.denominator});
}

}  // namespace

void attention(const AttentionArgs& args, Stream stream) {
  const KvCacheView& cache = args.cache;
  const auto unsupported = [](const auto&... parts) { fail(ErrorCode::kUnsupported, "attention", "attention: ", parts...); };
  if (cache.dtype != DType::kBF16) unsupported("KV cache: expected bfloat16, got ", dtype_name(cache.dtype));
  if (cache.head_dim < 2 || cache.head_dim > kMaxHeadDim || cache.head_dim % 2)
    unsupported("head size: expected an even number of 2..", kMaxHeadDim, ", got ", cache.head_dim);
  if (cache.block_size < 1 || cache.block_size > INT_MAX)
    unsupported("page size: expected 1..", INT_MAX, ", got ", cache.block_size);
  if (cache.num_kv_heads < 1 || args.num_heads < 1 || args.num_heads % cache.num_kv_heads)
    unsupported("group: expected heads that are a multiple of ", cache.num_kv_heads, " KV heads, got ", args.num_heads);
  if (args.num_heads > 65535) unsupported("heads: expected at most 65535, got ", args.num_heads);
  if (args.num_rows <= 0 || args.num_tiles <= 0) return;

  AttentionParams p;
  p.args = args;
  p.group = int(args.num_heads / cache.num_kv_heads);
  p.chunks = (p.group + kTileQueries - 1) / kTileQueries;
  p.columns_end = int(round_up(cache.head_dim, 16));
  p.columns = args.num_heads * cache.head_dim;
  p.padded = padded_columns(p.columns);
  decltype(&attention_kernel<1>) kernels[] = {attention_kernel<1>, attention_kernel<2>, attention_kernel<3>, attention_kernel<4>};
  const int slices = int(ceil_div(cache.head_dim, kSliceColumns));
  const Dim3 grid(unsigned(args.num_tiles), unsigned(cache.num_kv_heads * p.chunks));
  launch(kernels[slices - 1], grid, kThreads, size_t(Layout::bytes(slices)), stream, p);
  if (args.num_partials == 0) return;
  const unsigned threads = unsigned(round_up(cache.head_dim / 2, kWarpSize));
  launch(merge_kernel, Dim3(unsigned(args.num_rows), unsigned(args.num_heads)), threads, 0, stream, p);
}

}  // namespace lynx_rt::cuda
