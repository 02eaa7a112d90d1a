// Selector and dispatch of more than 256 rows: prefill and mixed steps, in which every row keeps its own routing.
//
// Work split, three launches. rows: a block takes neighbouring rows, a warp per row, and counts its pairs of each expert. lists: one
// block sums, for each block and expert, the pairs in the blocks before, and writes offsets, active experts, tiles and counters.
// places: the same blocks as in the first launch put their pairs in order.
// Between the launches block b keeps its counts, 16 bits each, in its own pairs' part of sorted_of_pair, and the index of the first
// non-finite score in pair_of_sorted[b]; the last launch overwrites both arrays with their values. A row has an expert at most once,
// so the count before a block is less than 65536; the sum over all blocks may be more.
// Memory traffic: 4 T E bytes of scores, 8 T k written by the first launch, 4 T k read twice and 8 T k written by the last;
// counts: 8 E bytes per block of at least 64 rows.
// Limits: T <= 65536, E <= 512, k <= 16.
#include "backend/cuda/route/route_large.h"

#include <algorithm>

#include "backend/cuda/route/route_lists.cuh"
#include "backend/cuda/route/route_own.cuh"
#include "backend/cuda/runtime/launch.h"
#include "backend/cuda/runtime/ptx.cuh"

namespace lynx_rt::cuda {

using namespace route_state;

namespace {

constexpr int kBlockThreads = 256, kListThreads = 1024;
constexpr int kMaxGroups = 32;  // most groups of blocks; a thread adds up the counts of a group
constexpr int kRowBlocks = 3;   // least blocks per SM; without this bound the compiler saves registers until it spills

struct ManyParams {
  RouteArgs args;
  int num_blocks;
  int tile_rows;
};

__device__ int real_rows(const RouteArgs& a) {
  const int n = *a.num_rows;
  return n < 0 ? 0 : n < a.max_rows ? n : a.max_rows;
}
__device__ int first_row(const ManyParams& p, int block) { return int(int64_t(p.args.max_rows) * block / p.num_blocks); }
// Returns the counts of a block; word w has those of experts 2 w and 2 w + 1.
__device__ uint32_t* counts_of(const ManyParams& p, int block) {
  return reinterpret_cast<uint32_t*>(p.args.sorted_of_pair + first_row(p, block) * p.args.rule.top_k);
}

template <int kPerLane>
__global__ void __launch_bounds__(kBlockThreads, kRowBlocks) rows_kernel(const __grid_constant__ ManyParams p) {
  grid_wait();  // scores are complete, and no earlier kernel still reads the outputs
  grid_launch_dependents();
  const RouteArgs& a = p.args;
  const int block = int(blockIdx.x), thread = int(threadIdx.x), lane = lane_id(), k = a.rule.top_k;
  const int words = (a.rule.num_experts + 1) / 2;
  uint32_t* first_bad = shared_array<uint32_t>(0);
  uint32_t* count = first_bad + 1;  // [2 * words]
  for (int i = thread; i < 2 * words; i += kBlockThreads) count[i] = 0;
  if (thread == 0) *first_bad = kNoneBad;
  sync_block();  // count, first_bad

  const int num_rows = real_rows(a), end = first_row(p, block + 1);
  for (int t = first_row(p, block) + warp_id(); t < end; t += kBlockThreads / 32) {
    OwnRoute own = {};
    own.expert = -1;
    if (t < num_rows) own = own_route<kPerLane>(a, t, first_bad);
    if (lane >= k) continue;
    a.ids[t * k + lane] = own.expert;
    a.weights[t * k + lane] = own.weight;
    if (t < num_rows) atomic_add(&count[own.expert], 1);
  }
  sync_block();  // count, first_bad
  uint32_t* out = counts_of(p, block);
  for (int w = thread; w < words; w += kBlockThreads) out[w] = count[2 * w] | count[2 * w + 1] << 16;
  if (thread == 0) a.pair_of_sorted[block] = int(*first_bad);
}

template <int kPerLane>
__global__ void __launch_bounds__(kListThreads) lists_kernel(const __grid_constant__ ManyParams p) {
  grid_wait();
  grid_launch_dependents();
  const RouteArgs& a = p.args;
  const int num_experts = a.rule.num_experts, thread = int(threadIdx.x), words = (num_experts + 1) / 2;
  uint32_t* first_bad = shared_array<uint32_t>(0);
  uint32_t* count = first_bad + 1;         // [2 * words + 1]
  uint32_t* tile = count + 2 * words + 1;  // [2 * words]
  uint32_t* partial = tile + 2 * words;    // [groups, 2 * words]
  if (thread == 0) *first_bad = kNoneBad;

  // A thread adds up two experts over a group of blocks.
  const int groups = kListThreads / words < kMaxGroups ? kListThreads / words : kMaxGroups;
  const int group = thread / words, word = thread % words;
  const int begin = p.num_blocks * group / groups, end = p.num_blocks * (group + 1) / groups;
  if (group < groups) {
    uint32_t low = 0, high = 0;
    for (int b = begin; b < end; ++b) {
      const uint32_t both = counts_of(p, b)[word];
      low += both & 0xffff;
      high += both >> 16;
    }
    partial[group * 2 * words + 2 * word] = low;
    partial[group * 2 * words + 2 * word + 1] = high;
  }
  sync_block();  // partial, first_bad
  if (group < groups) {
    uint32_t low = 0, high = 0;
    for (int g = 0; g < group; ++g) {
      low += partial[g * 2 * words + 2 * word];
      high += partial[g * 2 * words + 2 * word + 1];
    }
    for (int b = begin; b < end; ++b) {
      uint32_t& entry = counts_of(p, b)[word];
      const uint32_t both = entry;
      entry = (low & 0xffff) | high << 16;
      low += both & 0xffff;
      high += both >> 16;
    }
    if (group == groups - 1) {
      count[2 * word] = low;
      count[2 * word + 1] = high;
    }
  }
  for (int b = thread; b < p.num_blocks; b += kListThreads)
    if (a.pair_of_sorted[b] >= 0) atomic_min(first_bad, uint32_t(a.pair_of_sorted[b]));
  sync_block();  // count, first_bad

  if (warp_id() == 0) {
    const int active = list_experts<kPerLane>(a, p.tile_rows, count, tile);
    sync_warp();  // count
    const int misses = count_misses(a, count);
    if (lane_id() == 0) {
      SelectionStats stats;
      stats.rows = real_rows(a);
      stats.union_before = stats.active = active;
      stats.retained_mass = stats.rows;
      stats.misses_before = stats.misses = misses;
      write_stats(a, stats, *first_bad);
    }
  }
  sync_block();  // count, tile
  write_tiles(a, p.tile_rows, count, tile);
  write_uses(a, count, [count](int e) { return count[e + 1] > count[e]; });  // rows keep their own routing
}

__global__ void __launch_bounds__(kBlockThreads) places_kernel(const __grid_constant__ ManyParams p) {
  grid_wait();
  grid_launch_dependents();
  const RouteArgs& a = p.args;
  const int block = int(blockIdx.x), num_experts = a.rule.num_experts, thread = int(threadIdx.x);
  uint32_t* first_place = shared_array<uint32_t>(0);  // [E] first place of the block's pairs of an expert
  uint16_t* histogram = shared_array<uint16_t>(num_experts * 4);
  for (int i = thread; i < kBlockThreads / 32 * num_experts; i += kBlockThreads) histogram[i] = 0;
  const uint32_t* before = counts_of(p, block);
  for (int e = thread; e < num_experts; e += kBlockThreads)
    first_place[e] = uint32_t(a.offsets[e]) + (before[e / 2] >> (e % 2 * 16) & 0xffff);
  sync_block();  // first_place, histogram; the counts are read

  const int begin = first_row(p, block) * a.rule.top_k, end = first_row(p, block + 1) * a.rule.top_k;
  const int32_t* ids = a.ids + begin;
  const auto expert_of = [ids](int i) { return int(ids[i]); };
  uint16_t* mine = histogram + warp_id() * num_experts;
  const Range range = range_of_warp(end - begin);
  visit_pairs(range, mine, expert_of, [](int, int, int) {});
  sync_block();  // histogram
  sum_warps(histogram, num_experts, [](int, uint32_t) {});
  sync_block();  // histogram
  visit_pairs(range, mine, expert_of, [&](int i, int e, int seen) {
    const int row = e >= 0 ? int(first_place[e]) + seen : -1;
    a.sorted_of_pair[begin + i] = row;
    if (row >= 0) a.pair_of_sorted[row] = begin + i;
  });
}

}  // namespace

void route_large(const RouteArgs& args, Stream stream) {
  const int num_experts = args.rule.num_experts, words = (num_experts + 1) / 2;
  // A block has so many rows that its pairs' part of sorted_of_pair holds the counts; T > 256 is always enough for one block.
  const int rows = std::max(64, int(ceil_div(words, args.rule.top_k)));
  const ManyParams params{args, args.max_rows / rows, tile_rows(args.max_rows)};
  const int groups = std::min(kListThreads / words, kMaxGroups);
  const auto run = [&](auto* by_rows, auto* by_experts) {
    launch(by_rows, params.num_blocks, kBlockThreads, size_t(1 + 2 * words) * 4, stream, params);
    launch(by_experts, 1, kListThreads, size_t(2 + 4 * words + groups * 2 * words) * 4, stream, params);
  };
  if (num_experts <= 64)
    run(rows_kernel<2>, lists_kernel<2>);
  else if (num_experts <= 128)
    run(rows_kernel<4>, lists_kernel<4>);
  else if (num_experts <= 256)
    run(rows_kernel<8>, lists_kernel<8>);
  else
    run(rows_kernel<16>, lists_kernel<16>);
  launch(places_kernel, params.num_blocks, kBlockThreads, size_t(num_experts) * (4 + kBlockThreads / 32 * 2), stream, params);
}

}  // namespace lynx_rt::cuda
