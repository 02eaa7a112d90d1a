// Orders pairs by expert; shared by the one block of route_kernel.cuh and the blocks of route_large.cu. An expert's places come after
// those of lower experts, and its pairs are in ascending order.
#pragma once
#include "backend/cuda/route/route.h"
#include "backend/cuda/runtime/ptx.cuh"

namespace lynx_rt::cuda::route_state {

// The warp's range of `count` items: multiples of 32 items, in the order of the warps.
struct Range {
  int begin, end;
};
__device__ inline Range range_of_warp(int count) {
  const int warps = int(blockDim.x) / 32, size = (count + 32 * warps - 1) / (32 * warps) * 32;
  const int begin = warp_id() * size < count ? warp_id() * size : count;
  return {begin, begin + size < count ? begin + size : count};
}

// Calls visit(pair, expert or -1, n) for pairs in order, where n is the expert's count in `seen` before this pair is counted. By one
// warp.
template <class ExpertOf, class Visit>
__device__ void visit_pairs(Range range, uint16_t* seen, ExpertOf expert_of, Visit visit) {
  for (int i = range.begin; i < range.end; i += 32) {
    const int pair = i + lane_id();
    const int e = pair < range.end ? expert_of(pair) : -1;
    const uint32_t peers = match_any(kFullWarp, uint32_t(e));
    const int rank = count_bits(peers & ((1u << lane_id()) - 1));
    const int before = e >= 0 ? seen[e] : 0;
    sync_warp();  // all have read seen
    if (e >= 0 && rank == 0) seen[e] = uint16_t(before + count_bits(peers));
    sync_warp();  // seen
    if (pair < range.end) visit(pair, e, before + rank);
  }
}

// Replaces histogram [warps, E] by the sums over the warps before, per expert, and calls total(e, sum over all). By the whole block.
template <class Total>
__device__ void sum_warps(uint16_t* histogram, int num_experts, Total total) {
  const int threads = int(blockDim.x);
  for (int e = int(threadIdx.x); e < num_experts; e += threads) {
    uint32_t sum = 0;
    for (int warp = 0; warp < threads / 32; ++warp) {
      uint16_t& entry = histogram[warp * num_experts + e];
      const uint32_t n = entry;
      entry = uint16_t(sum);
      sum += n;
    }
    total(e, sum);
  }
}

// Writes offsets and active experts from count[e], the pairs of expert e, and counts tiles. Replaces count[e] by the expert's first
// place, and sets count[E] to the number of places and tile[e] to the first tile. Returns the number of active experts. By one warp.
template <int kPerLane>
__device__ int list_experts(const RouteArgs& a, int rows_per_tile, uint32_t* count, uint32_t* tile) {
  // One scan for three sums: places (at most 2^20), active experts, tiles.
  constexpr int kActive = 24, kTiles = 36;
  const int num_experts = a.rule.num_experts, first = lane_id() * kPerLane;
  const auto add = [rows_per_tile](uint32_t n) {
    return n ? n + (uint64_t(1) << kActive) + (uint64_t((n + rows_per_tile - 1) / rows_per_tile) << kTiles) : 0;
  };
  uint64_t total = 0;
  for (int e = first; e < first + kPerLane && e < num_experts; ++e) total += add(count[e]);
  uint64_t sum = total;
  for (int delta = 1; delta < 32; delta *= 2) {
    const uint64_t other = shuffle_up(kFullWarp, sum, delta);
    if (lane_id() >= delta) sum += other;
  }
  const auto places = [](uint64_t v) { return uint32_t(v) & ((1u << kActive) - 1); };
  const auto active = [](uint64_t v) { return int(v >> kActive) & ((1 << (kTiles - kActive)) - 1); };
  uint64_t at = sum - total;
  for (int e = first; e < first + kPerLane && e < num_experts; ++e) {
    const uint32_t n = count[e];
    if (n) a.active[active(at)] = e;
    count[e] = places(at);
    tile[e] = uint32_t(at >> kTiles);
    a.offsets[e] = int(places(at));
    at += add(n);
  }
  if (lane_id() == 31) {
    count[num_experts] = places(sum);
    a.offsets[num_experts] = int(places(sum));
    *a.num_active = active(sum);
    if (a.num_tiles) *a.num_tiles = int(sum >> kTiles);
  }
  return shuffle(kFullWarp, active(sum), 31);
}

// Writes the tile list from the result of list_experts(). By the whole block.
__device__ inline void write_tiles(const RouteArgs& a, int rows_per_tile, const uint32_t* count, const uint32_t* tile) {
  const int rows = rows_per_tile, warps = int(blockDim.x) / 32;
  for (int e = warp_id(); a.tiles && e < a.rule.num_experts; e += warps) {
    const int begin = int(count[e]), end = int(count[e + 1]);
    for (int i = lane_id(); begin + i * rows < end; i += 32) {
      const int first = begin + i * rows;
      a.tiles[int(tile[e]) + i] = {e, first, first + rows < end ? rows : end - first};
    }
  }
}

// Returns the number of active experts that are not resident, from the result of list_experts(). By one warp.
__device__ inline int count_misses(const RouteArgs& a, const uint32_t* count) {
  uint32_t misses = 0;
  LYNX_ROLLED
  for (int e = lane_id(); a.cost && e < a.rule.num_experts; e += 32) misses += count[e + 1] > count[e] && a.cost[e] != 0;
  return int(reduce_add(kFullWarp, misses));
}

// Writes the uses of experts from the result of list_experts(). By the whole block.
template <class IsWanted>
__device__ void write_uses(const RouteArgs& a, const uint32_t* count, IsWanted is_wanted) {
  LYNX_ROLLED
  for (int e = int(threadIdx.x); a.uses && e < a.rule.num_experts; e += int(blockDim.x))
    a.uses[e] = uint8_t((is_wanted(e) ? kWanted : 0) | (count[e + 1] > count[e] ? kRead : 0));
}

// Writes the counters. By one thread.
__device__ inline void write_stats(const RouteArgs& a, const SelectionStats& stats, uint32_t first_bad) {
  *a.stats = stats;
  a.stats->first_bad = int(first_bad);
}

}  // namespace lynx_rt::cuda::route_state
