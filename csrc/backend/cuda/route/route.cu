// Selector and dispatch of up to 256 rows, in one launch of one block. route.h has the contract, routing/selector.h the policies,
// route_kernel.cuh the work split. This file has own routing, lynx and oea; route_gates.cu and route_rows.cu have the other policies,
// route_large.cu has steps of more rows.
//
// Memory traffic: scores are read once, once more for the votes, and once more for rows whose choice is not admitted: at most
// 12 T E bytes, from L2 after the first read. 16 T k bytes are written, and 12 per tile.
#include "backend/cuda/route/route.h"

#include <algorithm>
#include <climits>
#include <cmath>

#include "backend/cuda/route/route_kernel.cuh"
#include "backend/cuda/route/route_keys.h"
#include "backend/cuda/route/route_large.h"
#include "base/error.h"

namespace lynx_rt::cuda {

using namespace route_state;

namespace {

// lynx: sums the votes, admits experts by the threshold and for confident rows, and fills up to k. By the whole block.
__device__ void admit_lynx(const RouteParams& p, int num_rows) {
  Shared& s = shared_state();
  const RouteArgs& a = p.args;
  const int num_experts = a.rule.num_experts, thread = int(threadIdx.x), k = a.rule.top_k;
  const uint64_t* votes = shared_array<uint64_t>(p.layout.votes);
  const uint64_t sum = count_votes(p, num_rows);
  const uint32_t word = ballot(kFullWarp, thread < num_experts && sum >= s.needed);
  if (lane_id() == 0 && warp_id() < kWords) s.admitted[warp_id()] = word;
  sync_block();  // votes, admitted

  if (thread < num_rows && is_current(p, thread) && shared_array<uint8_t>(p.layout.confident)[thread])
    set_bit(s.admitted, shared_array<int16_t>(p.layout.chosen)[thread * k]);
  sync_block();  // admitted

  if (warp_id() != 0) return;
  for (int count = count_set(s.admitted); count < k; ++count) {
    uint64_t most = 0;
    int expert = kMaxRouteExperts;  // no expert
    for (int e = lane_id(); e < num_experts; e += 32)
      if (!has_bit(s.admitted, e) && (expert == kMaxRouteExperts || votes[e] > most)) most = votes[e], expert = e;
    largest_of_warp(most, expert);
    sync_warp();  // all have read admitted
    if (lane_id() == 0) set_bit(s.admitted, expert);
    sync_warp();  // admitted
  }
}

// oea: admits the first k0 choices of all rows, and one more of each row while these are fewer than k experts. By one warp.
__device__ void admit_oea(const RouteParams& p) {
  Shared& s = shared_state();
  const int lane = lane_id(), k = p.args.rule.top_k;
  uint32_t word = 0;
  int count = 0;
  for (int j = 0; j < k && (j < p.args.selection.k0 || count < k); ++j) {
    if (lane < kWords) word |= s.wanted[j][lane];
    count = int(reduce_add(kFullWarp, uint32_t(count_bits(word))));
  }
  if (lane < kWords) s.admitted[lane] = word;
}

struct Admit {
  static constexpr bool kVotes = true, kMovesWeights = false;
  static constexpr int kMaxThreads = 1024;

  template <int kPerLane>
  static __device__ void prepare(const RouteParams& p, int num_rows) {
    if (p.args.selection.policy == Policy::kLynx) {
      admit_lynx(p, num_rows);
    } else if (warp_id() == 0) {
      admit_oea(p);
    }
    sync_block();  // admitted
    admit_exact_rows(p, num_rows);
  }

  template <int kPerLane>
  static __device__ int choose(const RouteParams& p, int t, int own) {
    return choose_admitted<kPerLane>(p, t, own);
  }
};

}  // namespace

void route(const RouteArgs& args, Stream stream) {
  const int num_experts = args.rule.num_experts, k = args.rule.top_k;
  if (args.max_rows < 0 || args.max_rows > kMaxStepRows)
    invalid("route", "rows: expected 0..", kMaxStepRows, ", got ", args.max_rows);
  if (num_experts < 1 || num_experts > kMaxRouteExperts)
    invalid("route", "experts: expected 1..", kMaxRouteExperts, ", got ", num_experts);
  if (k < 1 || k > kMaxRouteTopK || k > num_experts)
    invalid("route", "experts per token: expected 1..", std::min(kMaxRouteTopK, num_experts), ", got ", k);
  check_rule(args.rule);
  check_selection(args.selection, num_experts, k);
  Selection selection = args.selection;
  if (!args.cost) selection.resident = 0;
  if (args.max_rows > kMaxRouteRows) {
    if (acts(selection, args.phase, args.max_rows))
      invalid("route", "rows of a step in which a policy acts: expected 0..", kMaxRouteRows, ", got ", args.max_rows);
    route_large(make_keys(args, stream), stream);
    return;
  }

  RouteParams params = {};
  params.args = make_keys(args, stream);
  params.args.selection = selection;
  params.theta_fraction = uint64_t(std::ldexp(std::frexp(selection.theta, &params.theta_exponent), 53));
  params.tile_rows = tile_rows(args.max_rows);
  while (params.least_rows < 3 && !acts(selection, args.phase, params.least_rows)) ++params.least_rows;
  if (params.least_rows == 3) params.least_rows = INT_MAX;
  params.least_experts = std::max(budget_experts(selection, num_experts), k);
  params.guard = has_guard(selection);
  // One group costs nothing: the kernel looks at groups only where one may be selected for otherwise than all rows.
  if (is_per_row(selection) || !acts(selection, args.phase, 2)) params.args.groups = nullptr;
  params.votes = selection.policy == Policy::kLynx || selection.policy == Policy::kLynxLiteral;
  params.skip_limit = -std::log(selection.ratio);
  params.refill_limit = -std::log(selection.refill);
  params.damp = has_refill(selection.policy) ? selection.damp : 0;
  // 1e-5 covers the roundings of the float product. Outside this range of alpha it may not, and nothing is skipped.
  if (selection.alpha > 1e-30 && selection.alpha < 1e30) params.filter = float(selection.alpha * (1 - 1e-5));
  switch (selection.policy) {
    case Policy::kTopk:
    case Policy::kLynx:
    case Policy::kOea: return launch_route<Admit>(params, stream);
    case Policy::kXshare:
    case Policy::kDesVote:
    case Policy::kCover: return launch_gates(params, stream);
    default: launch_rows(params, stream);
  }
}

}  // namespace lynx_rt::cuda
