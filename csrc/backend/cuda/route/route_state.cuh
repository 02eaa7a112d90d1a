// The parameters, the shared memory and the sets of experts of the one-block kernel. route_own.cuh and route_lists.cuh have the code
// that it shares with route_large.cu.
#pragma once
#include "backend/cuda/route/route.h"
#include "backend/cuda/route/route_own.cuh"
#include "backend/cuda/runtime/ptx.cuh"

namespace lynx_rt::cuda::route_state {

constexpr int kWords = kMaxRouteExperts / 32;
constexpr int kMaxBins = 16;  // the largest beta

// Byte offsets of the arrays after Shared in shared memory.
struct RouteLayout {
  int votes;      // uint64 [E]
  int partial;    // uint64 [threads / E, E] sums of votes, each over every (threads / E)-th row; threads >= E
  int retained;   // double [T]
  int best;       // float [T] best score
  int count;      // uint32 [E + 1] see list_experts()
  int tile;       // uint32 [E]
  int histogram;  // uint16 [warps, E] pairs of an expert in a warp's range, later those in the ranges before
  int chosen;     // int16 [T, k] own choices, later the final ones
  int assigned;   // int16 [T, k]
  int target;     // int16 [E] sere, alias: what a choice becomes
  int serves;     // uint32 [T / 32, E] cover: one bit per row that an expert serves
  int confident;  // uint8 [T] only one expert is in bin 0
  int bytes;
};

struct RouteParams {
  RouteArgs args;
  RouteLayout layout;
  uint64_t theta_fraction;  // theta = theta_fraction * 2^(theta_exponent - 53)
  int theta_exponent;
  int tile_rows;
  int least_rows;     // least number of real rows for the policy to act
  int least_experts;  // xshare, des_vote, cover: least number of admitted experts
  bool guard;
  bool votes;         // lynx, lynx_literal
  double skip_limit;  // skip: largest gap to the best score with which an expert stays
  double
      refill_limit;  // largest gap to the row's best final expert with which an expert stays that the row did not choose itself
  double damp;       // 0 where the policy has none
  float filter;      // float gap * filter >= number of bins proves that the exact position is after the last bin
};

struct Shared {
  uint64_t value[kMaxBins];                // value of a vote in each bin; [0] is the top vote
  uint64_t needed;                         // sum of votes that admits an expert
  uint32_t wanted[kMaxRouteTopK][kWords];  // own choices by rank
  uint32_t admitted[kWords];               // admitted experts; sere: primary experts; with `resident`: free experts
  uint32_t paid[kWords];                   // experts that are not resident
  uint32_t open[kWords];                   // xshare, des_vote, cover: experts that are not admitted yet, but may be
  uint32_t used[kWords];                   // experts of the assignment
  uint32_t first_bad;
  uint32_t remapped;
  uint32_t num_exact;
  int num_bins;
  int num_wanted;   // distinct own choices, of a group and at the end of the step
  int paid_wanted;  // those of them that are not resident

  // The isolation group that is selected for; without groups, group 0 has all rows.
  int group, num_groups;
  uint32_t num_in_group;

  // The next members count all groups so far.
  uint32_t own[kWords];  // own choices
  uint32_t lost;         // own choices that rows lost
  uint32_t changed_rows;
  bool acted, changed;
};

constexpr RouteLayout route_layout(int num_rows, int num_experts, int top_k, int threads) {
  RouteLayout at = {};
  int end = int(sizeof(Shared));
  const auto take = [&end](int count, int size) {
    const int begin = (end + size - 1) / size * size;
    end = begin + count * size;
    return begin;
  };
  at.votes = take(num_experts, 8);
  at.partial = take(threads / num_experts * num_experts, 8);
  at.retained = take(num_rows, 8);
  at.best = take(num_rows, 4);
  at.count = take(num_experts + 1, 4);
  at.tile = take(num_experts, 4);
  at.histogram = take(threads / 32 * num_experts, 2);
  at.chosen = take(num_rows * top_k, 2);
  at.assigned = take(num_rows * top_k, 2);
  at.target = take(num_experts, 2);
  at.serves = take((num_rows + 31) / 32 * num_experts, 4);
  at.confident = take(num_rows, 1);
  at.bytes = end;
  return at;
}
static_assert(route_layout(kMaxRouteRows, kMaxRouteExperts, kMaxRouteTopK, 1024).bytes < 96 * 1024, "fits every architecture");

__device__ inline Shared& shared_state() { return *shared_array<Shared>(0); }

// Whether row t is selected for: it is in the current group.
__device__ inline bool is_current(const RouteParams& p, int t) {
  return !p.args.groups || p.args.groups[t] == shared_state().group;
}

__device__ inline bool has_bit(const uint32_t* words, int e) { return words[e / 32] >> (e % 32) & 1; }
__device__ inline void set_bit(uint32_t* words, int e) { atomic_or(&words[e / 32], 1u << (e % 32)); }
__device__ inline int count_set(const uint32_t* words) {  // by a whole warp
  return int(reduce_add(kFullWarp, lane_id() < kWords ? uint32_t(count_bits(words[lane_id()])) : 0));
}
__device__ inline int count_common(const uint32_t* a, const uint32_t* b) {  // by a whole warp
  return int(reduce_add(kFullWarp, lane_id() < kWords ? uint32_t(count_bits(a[lane_id()] & b[lane_id()])) : 0));
}

}  // namespace lynx_rt::cuda::route_state
