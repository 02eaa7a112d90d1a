// Paged attention over a bfloat16 KV cache on tensor cores.
//
// Work split: a block of 4 warps per (tile, kv head, chunk of 16 query heads where the group is wider). The tile's up to 16 query
// vectors are the 16 rows of every product. Keys are processed in splits of 256: warp w computes the scores of unit w (64 keys) and
// their softmax numerators; then all warps multiply the numerators with V, warp w for columns 16 w .. 16 w + 15 of every 64, unit by
// unit. K and V pass through shared memory in slices of 256 keys x 64 columns (32 KB): the slices of K, then those of V, then the
// next split's; two slices are being loaded or used at any time. A warp loads the keys of its own unit, so slices of K need no block
// barrier. Splits and units that no row of the tile sees (windows, chunks) are skipped; this does not shift the others.
//
// Arithmetic, which does not depend on the tile: a score is the float32 sum over D in steps of 16, times the scale. A unit's
// numerators are exp(score - maximum of the unit) rounded to bf16, and its denominator is the float32 sum of the rounded values, so
// that the weights of a row sum to 1. merge() adds units in order to their split, and splits in order to the row, here or in
// merge_kernel. A unit or split in which a row has no key has denominator 0 and is skipped, so it changes no bit. A sink is added to
// the row's denominator in the end.
//
// Memory traffic: each tile and chunk reads K and V of the keys that it sees once, 2 (D + Dv) bytes per key and kv head; the reads
// after the first are from L2, and so is the second pass over K where V is its first columns (MLA). A split row moves 8 (Dv + 2)
// bytes per query head and split through `partial`. Shared memory: 74 KB (D <= 64) to 84 KB (D = 256) and 94 KB (D = 576): two
// blocks per SM on sm_90 and sm_100, and on sm_80 up to D = 256, one elsewhere. Limits: D and Dv even, D at most 576, Dv at most
// 512; cache rows whose length is no multiple of 8 take plain loads. V of a key that some row of a tile sees is multiplied by 0 for
// the rows that do not see it, so a NaN or infinity in it spoils them; V of other keys is not read.
#include <algorithm>
#include <climits>
#include <cmath>

#include "backend/cuda/attention/attention_loads.cuh"
#include "backend/cuda/gemm/packed.h"
#include "backend/cuda/runtime/launch.h"
#include "base/error.h"

namespace lynx_rt::cuda {

using namespace attention_tiles;

namespace {

// --- products

// score[n] += q . k of the unit's keys 8 n .. 8 n + 7 over the columns of slice `slice`, which is at `keys`.
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

// Stores the softmax of one unit: numerators as A fragments, and maximum and denominator of each query. Query lane / 4 + 8 h sees
// keys first[h] .. last[h].
__device__ void store_numerators(float (&score)[8][4], float scale, int unit_begin, const int (&first)[2], const int (&last)[2]) {
  float maximum[2] = {-INFINITY, -INFINITY}, denominator[2] = {0, 0};
  LYNX_UNROLL
  for (int n = 0; n < 8; ++n) {
    LYNX_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int key = unit_begin + n * 8 + lane_id() % 4 * 2 + i % 2;
      score[n][i] = key >= first[i / 2] && key <= last[i / 2] ? score[n][i] * scale : -INFINITY;
      maximum[i / 2] = fmaxf(maximum[i / 2], score[n][i]);
    }
  }
  LYNX_UNROLL
  for (int h = 0; h < 2; ++h) {
    maximum[h] = fmaxf(maximum[h], shuffle_xor(kFullWarp, maximum[h], 1));
    maximum[h] = fmaxf(maximum[h], shuffle_xor(kFullWarp, maximum[h], 2));
  }
  // A row without a key subtracts 0: exp(-inf - 0) = 0. fmaxf() ignores a NaN, but its numerator and the denominator become NaN.
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

// Writes the zeros after the last head of a row of `rounded`. By the whole block.
__device__ void pad_row(const AttentionParams& p, int64_t row) {
  for (int64_t c = p.columns + threadIdx.x; c < p.padded; c += blockDim.x) p.args.rounded[row * p.padded + c] = 0;
}

// `column` is of a row of out: head * Dv + the column of the head.
__device__ void store_result(const AttentionParams& p, int64_t row, int64_t column, Float2 v) {
  if (p.args.gated) {
    const int64_t d = p.v.columns;
    const float* gate = p.args.q + row * p.args.q_stride + (2 * (column / d) + 1) * d + column % d;
    v = {v.x / (1.0f + accurate_exp(-gate[0])), v.y / (1.0f + accurate_exp(-gate[1]))};
  }
  if (p.args.out) *reinterpret_cast<Float2*>(p.args.out + row * p.columns + column) = v;
  if (p.args.rounded) *reinterpret_cast<uint32_t*>(p.args.rounded + row * p.padded + column) = to_bf16x2(v.x, v.y);
}

// Returns a row of `partial`: Dv sums, maximum, denominator.
__device__ float* partial_row(const AttentionParams& p, int64_t partial, int head) {
  return p.args.partial + (partial * p.args.num_heads + head) * (p.v.columns + 2);
}

// Returns the divisor of a row's sums: the denominator, with the sink.
__device__ float divisor(const PagedAttentionArgs& a, const Softmax& row, int head) {
  return a.sinks ? row.denominator + fast_exp(a.sinks[head] - row.maximum) : row.denominator;
}

template <int kValueSlices>
__global__ void __launch_bounds__(kThreads, 2) attention_kernel(const __grid_constant__ AttentionParams p) {
  grid_wait();
  grid_launch_dependents();
  const PagedAttentionArgs& a = p.args;
  const int chunk = int(blockIdx.y) % p.chunks;
  Work work;
  work.tile = a.tiles[blockIdx.x];
  if (work.tile.rows == 0) return;
  const bool is_split = work.tile.split >= 0;
  work.begin = first_key(a, a.positions[work.tile.row]);
  work.end = last_key(a, work.tile.sequence, a.positions[work.tile.row + work.tile.rows - 1]) + 1;
  work.first_split = is_split ? work.tile.split : work.begin / kSplitKeys;
  work.end_split = is_split ? work.tile.split + 1 : (work.end + kSplitKeys - 1) / kSplitKeys;
  if (is_split && work.end_split * kSplitKeys <= work.begin) return;  // no row sees the split; merge_kernel skips it, too
  work.kv_head = int(blockIdx.y) / p.chunks;
  work.first_head = work.kv_head * p.group + chunk * kTileQueries;
  work.width = p.group - chunk * kTileQueries < kTileQueries ? p.group - chunk * kTileQueries : kTileQueries;
  work.num_queries = work.tile.rows * work.width;

  NextSlice next = {work.first_split};
  start_slice<kValueSlices>(p, work, next);
  start_slice<kValueSlices>(p, work, next);
  load_queries(p, work);
  int query[2], first[2], last[2];  // the rows of the products that this lane holds
  LYNX_UNROLL
  for (int h = 0; h < 2; ++h) {
    query[h] = lane_id() / 4 + 8 * h;
    last[h] = -1;
    if (query[h] < work.num_queries)
      last[h] = last_key(a, work.tile.sequence, a.positions[work.tile.row + query[h] / work.width]);
    first[h] = first_key(a, last[h]);
  }
  sync_block();  // queries

  Softmax row[2];
  float result[kValueSlices][2][4] = {};  // [s][n]: columns 64 s + 16 warp + 8 n .. + 7
  int stage = 0;
  for (int s = work.first_split; s < work.end_split; ++s) {
    const int split_begin = s * kSplitKeys, unit_begin = split_begin + warp_id() * kUnitKeys;
    float score[8][4] = {};
    for (int slice = 0; slice < p.key_slices; ++slice, stage ^= 1) {
      copy_wait<1>();
      sync_warp();  // slice of K
      if (is_seen(work, unit_begin))
        multiply_keys(score, dynamic_shared() + stage * kSliceBytes + warp_id() * kUnitKeys * kRowBytes, slice, p.k.columns);
      sync_warp();  // all have read it
      start_slice<kValueSlices>(p, work, next);
    }
    if (is_seen(work, unit_begin)) store_numerators(score, a.scale, unit_begin, first, last);

    MergeWeights unit_weights[kUnits][2], split_weights[2];
    LYNX_UNROLL
    for (int slice = 0; slice < kValueSlices; ++slice, stage ^= 1) {
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
            if (is_seen(work, split_begin + unit * kUnitKeys)) u = state[unit * kTileQueries + query[h]];
            unit_weights[unit][h] = merge(split, u.x, u.y);
          }
          split_weights[h] = merge(row[h], split.maximum, split.denominator);
        }
      }
      if (slice * kSliceColumns + warp_id() * 16 < p.v.columns) {
        float split_sum[2][4] = {};
        LYNX_UNROLL
        for (int unit = 0; unit < kUnits; ++unit) {
          if (!is_seen(work, split_begin + unit * kUnitKeys)) continue;
          float sum[2][4] = {};
          multiply_values(sum, dynamic_shared() + stage * kSliceBytes, unit);
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
      start_slice<kValueSlices>(p, work, next);
    }
  }

  LYNX_UNROLL
  for (int h = 0; h < 2; ++h) {
    if (query[h] >= work.num_queries) continue;
    const int64_t t = work.tile.row + query[h] / work.width;
    const int head = work.first_head + query[h] % work.width;
    float* partial = is_split ? partial_row(p, work.tile.partial, head) : nullptr;
    const float by = is_split ? 0 : divisor(a, row[h], head);
    LYNX_UNROLL
    for (int i = 0; i < kValueSlices * 2; ++i) {
      const int column = i / 2 * kSliceColumns + warp_id() * 16 + i % 2 * 8 + lane_id() % 4 * 2;
      if (column >= p.v.columns) break;
      const Float2 v = {result[i / 2][i % 2][2 * h], result[i / 2][i % 2][2 * h + 1]};
      if (is_split) {
        *reinterpret_cast<Float2*>(partial + column) = v;
      } else {
        const bool empty = last[h] < 0;
        store_result(p, t, int64_t(head) * p.v.columns + column, {empty ? 0 : v.x / by, empty ? 0 : v.y / by});
      }
    }
    if (is_split && warp_id() == 0 && lane_id() % 4 == 0)
      *reinterpret_cast<Float2*>(partial + p.v.columns) = {row[h].maximum, row[h].denominator};
  }
  if (a.rounded && !is_split && blockIdx.y == gridDim.y - 1)
    for (int i = 0; i < work.tile.rows; ++i) pad_row(p, work.tile.row + i);
}

// Merges the splits of each row. A block per (row, query head), a thread per pair of columns. attention_kernel has already written
// the rows without partials.
__global__ void __launch_bounds__(kMaxValueDim / 2) merge_kernel(const __grid_constant__ AttentionParams p) {
  grid_wait();
  grid_launch_dependents();
  constexpr int kBatch = 16;  // splits that are loaded together
  const PagedAttentionArgs& a = p.args;
  const int t = int(blockIdx.x), head = int(blockIdx.y), d = p.v.columns, column = int(threadIdx.x) * 2;
  int begin = a.first_partial[t];
  const int end = a.first_partial[t + 1];
  if (begin == end) return;
  begin += first_key(a, a.positions[t]) / kSplitKeys;
  if (a.rounded && head == a.num_heads - 1) pad_row(p, t);
  if (column >= d) return;
  const float* partials = partial_row(p, begin, head);
  const int stride = a.num_heads * (d + 2);
  Softmax row;
  Float2 result = {0, 0};
  for (int first = begin; first < end; first += kBatch) {
    Float2 state[kBatch], sum[kBatch];
    LYNX_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      const float* partial = partials + (first + i < end ? first + i - begin : 0) * stride;
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
  const float by = divisor(a, row, head);
  store_result(p, t, int64_t(head) * d + column, {result.x / by, result.y / by});
}

}  // namespace

int64_t attention_shared_bytes(int64_t head_dim) { return Layout::bytes(int(ceil_div(head_dim, kSliceColumns))); }

void attention(const PagedAttentionArgs& args, Stream stream) {
  const KvCacheView& cache = args.cache;
  const int64_t dv = cache.v_columns();
  const auto unsupported = [](const auto&... parts) { fail(ErrorCode::kUnsupported, "attention", "attention: ", parts...); };
  if (cache.dtype != DType::kBF16) unsupported("KV cache: expected bfloat16, got ", dtype_name(cache.dtype));
  if (cache.head_dim < 2 || cache.head_dim > kMaxKeyDim || cache.head_dim % 2)
    unsupported("head size: expected an even number of 2..", kMaxKeyDim, ", got ", cache.head_dim);
  if (dv < 2 || dv > kMaxValueDim || dv % 2)
    unsupported("head size of values: expected an even number of 2..", kMaxValueDim, ", got ", dv);
  if (!cache.v && dv > cache.head_dim) unsupported("head size of values in K: expected at most ", cache.head_dim, ", got ", dv);
  if (cache.block_size < 1 || cache.block_size > INT_MAX)
    unsupported("page size: expected 1..", INT_MAX, ", got ", cache.block_size);
  if (cache.num_kv_heads < 1 || args.num_heads < 1 || args.num_heads % cache.num_kv_heads)
    unsupported("group: expected heads that are a multiple of ", cache.num_kv_heads, " KV heads, got ", args.num_heads);
  if (args.num_heads > 65535) unsupported("heads: expected at most 65535, got ", args.num_heads);
  if (args.window < 0 || args.chunk < 0)
    unsupported("window and chunk: expected at least 0, got ", args.window, " and ", args.chunk);
  if (args.query_start && (args.window > 0 || args.chunk > 0))
    unsupported("window and chunk without a causal mask: expected 0, got ", args.window, " and ", args.chunk);
  if (int64_t(args.num_partials) * args.num_heads * (dv + 2) > INT_MAX)
    unsupported("partial results: expected at most 2^31 - 1 values, got ", args.num_partials, " * ", args.num_heads, " heads");
  if (args.num_rows <= 0 || args.num_tiles <= 0) return;

  AttentionParams p;
  p.args = args;
  p.k = {static_cast<const uint16_t*>(cache.k), int(cache.head_dim), int(cache.head_dim), int(round_up(cache.head_dim, 16))};
  p.v = {static_cast<const uint16_t*>(cache.v ? cache.v : cache.k), int(cache.v ? dv : cache.head_dim), int(dv),
         int(round_up(dv, 16))};
  p.key_slices = int(ceil_div(cache.head_dim, kSliceColumns));
  p.group = int(args.num_heads / cache.num_kv_heads);
  p.chunks = (p.group + kTileQueries - 1) / kTileQueries;
  p.columns = args.num_heads * dv;
  p.padded = padded_columns(p.columns);
  decltype(&attention_kernel<1>) kernels[] = {attention_kernel<1>, attention_kernel<2>, attention_kernel<3>, attention_kernel<4>,
                                              attention_kernel<8>};
  const int64_t value_slices = std::min<int64_t>(ceil_div(dv, kSliceColumns), 5);  // 5 and more take the kernel of 8
  // With a window or chunk a row only sees keys of its last splits, whose tiles come first (AttentionPlan): others are not launched.
  int64_t tiles = args.num_tiles;
  for (const int span : {args.window, args.chunk})
    if (span > 0) tiles = std::min(tiles, args.num_rows * (ceil_div(span - 1, kSplitKeys) + 1));
  const Dim3 grid(unsigned(tiles), unsigned(cache.num_kv_heads * p.chunks));
  launch(kernels[value_slices - 1], grid, kThreads, size_t(Layout::bytes(p.key_slices)), stream, p);
  if (args.num_partials == 0) return;
  const unsigned threads = unsigned(round_up(dv / 2, kWarpSize));
  launch(merge_kernel, Dim3(unsigned(args.num_rows), unsigned(args.num_heads)), threads, 0, stream, p);
}

}  // namespace lynx_rt::cuda
