// The one-block kernel of route(), which all policies share: own routing, then the policy, then guard and weights, then lists and
// counters. The policy's part is a Rule, a class of two device functions:
//   template <int kPerLane> static void prepare(const RouteParams& p, int num_rows);
//       Called by the whole block, before choose(): own choices are in `chosen` and, by rank, in s.wanted. Policies that admit
//       experts fill s.admitted. It looks at rows with is_current() only, and must end with a barrier if it writes anything that choose() reads.
//   template <int kPerLane> static int choose(const RouteParams& p, int t, int own);
//       Called by a warp, for a real row: lane j < k passes its own choice and gets the final expert of choice j, -1 for none. Adds
//       the number of own choices that the row lost to s.remapped.
//   static constexpr bool kVotes, kMovesWeights: has policies that count votes; has policies whose weights move with the choices.
//   static constexpr int kMaxThreads: 1024, or 512 where a thread needs more than 64 registers.
//
// Work split. A warp has a row; its lane l has experts l, l + 32, .., and lanes 0..k-1 have the row's pairs. Sets of experts are
// E / 32 words of bits. For the lists a warp has a range of pairs, and a histogram per warp keeps their order.
// Limits: T <= 256, E <= 512, k <= 16. The block has a warp per row, up to kMaxThreads, and a thread per expert. At T = 256 a cluster
// or a second launch may be faster than one block (TODO measure on a GPU).
#pragma once
#include <algorithm>
#include <cmath>

#include "backend/cuda/route/route_lists.cuh"
#include "backend/cuda/route/route_state.cuh"
#include "backend/cuda/route/route_votes.cuh"
#include "backend/cuda/runtime/launch.h"
#include "backend/cuda/runtime/ptx.cuh"

namespace lynx_rt::cuda::route_state {

// --- for rules

// Admits all choices of exact rows. It comes after the filling, so that they take no other expert's place. With `resident`, residents
// follow. By the whole block, with a barrier.
__device__ inline void admit_exact_rows(const RouteParams& p, int num_rows) {
  const RouteArgs& a = p.args;
  const int16_t* chosen = shared_array<int16_t>(p.layout.chosen);
  for (int pair = int(threadIdx.x); a.exact && pair < num_rows * a.rule.top_k; pair += int(blockDim.x))
    if (is_current(p, pair / a.rule.top_k) && a.exact[pair / a.rule.top_k]) set_bit(shared_state().admitted, chosen[pair]);
  for (int e = int(threadIdx.x); a.selection.resident > 0 && e < a.rule.num_experts; e += int(blockDim.x))
    if (a.cost[e] == 0) set_bit(shared_state().admitted, e);
  sync_block();  // admitted
}

// An expert that a row may take, in a lane; `value` is its score with the nats that it is worth more.
struct Candidate {
  int expert;  // -1 = none
  float score;
  double value;

  // Whether `other` ranks before this one: by value, or by score alone.
  __device__ bool is_behind(const Candidate& other, bool by_value) const {
    if (other.expert < 0) return false;
    if (by_value && other.value != value) return other.value > value;
    return other.score != score ? other.score > score : other.expert < expert;
  }
};
__device__ inline Candidate of_lane(const Candidate& c, int lane) {
  return {shuffle(kFullWarp, c.expert, lane), shuffle(kFullWarp, c.score, lane), shuffle(kFullWarp, c.value, lane)};
}

// choose() with `resident`: as Selector::assign_resident(). Lane j passes the row's own choice j and its j-th best free expert. An
// expert that is not free can only be an own choice, since k others rank before any other one. By one warp.
__device__ inline int choose_resident(const RouteParams& p, int t, int own, int free_expert, uint32_t free_key) {
  Shared& s = shared_state();
  const int k = p.args.rule.top_k, lane = lane_id();
  const double bonus = p.args.selection.resident;
  Candidate free = {-1, 0, 0}, paid = {-1, 0, 0};
  if (lane < k && free_key) free = {free_expert, from_key(free_key), from_key(free_key) + bonus};
  if (lane < k && !has_bit(s.admitted, own)) {
    const float score = p.args.keys[t * p.args.rule.num_experts + own];
    paid = {own, score, score + (lane == 0 ? bonus : 0.0)};
  }
  int before_free = 0, before_paid = 0;
  for (int j = 0; j < k; ++j) {
    const Candidate other_free = of_lane(free, j), other_paid = of_lane(paid, j);
    before_free += free.is_behind(other_free, true) + free.is_behind(other_paid, true);
    before_paid += paid.is_behind(other_free, true) + paid.is_behind(other_paid, true);
  }
  if (before_free >= k) free.expert = -1;
  if (before_paid >= k) paid.expert = -1;

  int expert = -1;  // that of rank `lane` by score
  float score = 0;
  for (int j = 0; j < k; ++j) {
    const Candidate a = of_lane(free, j), b = of_lane(paid, j);
    // Every lane asks how many of the chosen ones rank before a and before b.
    const int rank_a =
        count_bits(ballot(kFullWarp, a.is_behind(free, false))) + count_bits(ballot(kFullWarp, a.is_behind(paid, false)));
    const int rank_b =
        count_bits(ballot(kFullWarp, b.is_behind(free, false))) + count_bits(ballot(kFullWarp, b.is_behind(paid, false)));
    if (a.expert >= 0 && rank_a == lane) expert = a.expert, score = a.score;
    if (b.expert >= 0 && rank_b == lane) expert = b.expert, score = b.score;
  }
  bool is_own = false, kept = false;
  for (int j = 0; j < k; ++j) is_own |= shuffle(kFullWarp, own, j) == expert;
  const double gap = double(shuffle(kFullWarp, score, 0)) - score;
  if (!is_own && gap > p.refill_limit) expert = -1;
  for (int j = 0; j < k; ++j) kept |= shuffle(kFullWarp, expert, j) == own;
  const uint32_t lost = ballot(kFullWarp, lane < k && !kept);
  if (lane == 0 && lost) atomic_add(&s.remapped, uint32_t(count_bits(lost)));
  return expert;
}

// choose() of policies that admit experts: takes the best admitted experts of row t, without those that are not worth running. Exact
// rows are no special case, because all their choices are admitted.
template <int kPerLane>
__device__ int choose_admitted(const RouteParams& p, int t, int own) {
  Shared& s = shared_state();
  const int k = p.args.rule.top_k, num_experts = p.args.rule.num_experts, lane = lane_id();
  int expert = own;
  const uint32_t lost = ballot(kFullWarp, lane < k && !has_bit(s.admitted, expert));
  if (lost) {
    uint32_t key[kPerLane], expert_key = 0;
    LYNX_UNROLL
    for (int i = 0; i < kPerLane; ++i) {
      const int e = i * 32 + lane;
      key[i] = e < num_experts && has_bit(s.admitted, e) ? open_key(p.args.keys[t * num_experts + e]) : 0;
    }
    pick_best(key, k, expert, expert_key);
    if (p.args.selection.resident > 0) return choose_resident(p, t, own, expert, expert_key);
    const bool none = shuffle(kFullWarp, expert_key, 0) == 0;  // none is admitted in the row's groups: it keeps its first choice
    if (expert_key == 0) expert = lane == 0 ? own : -1;
    if (p.refill_limit < INFINITY) {
      const double gap = double(from_key(shuffle(kFullWarp, expert_key, 0))) - from_key(expert_key);
      const int kept = k - count_bits(lost);  // own choices come first, because they are better than others
      if (lane >= kept && gap > p.refill_limit) expert = -1;
    }
    if (lane == 0) atomic_add(&s.remapped, uint32_t(count_bits(lost) - none));
  }
  return expert;
}

// --- the kernel's own steps

__device__ inline void initialise(const RouteParams& p) {
  Shared& s = shared_state();
  const int threads = int(blockDim.x), t = int(threadIdx.x);
  for (int i = t; i < kMaxRouteTopK * kWords; i += threads) s.wanted[i / kWords][i % kWords] = 0;
  if (t < kWords) s.admitted[t] = s.used[t] = s.own[t] = 0;
  for (int w = warp_id(); w < kWords; w += threads / 32) {
    const int e = w * 32 + lane_id();
    const uint32_t word = ballot(kFullWarp, p.args.cost && e < p.args.rule.num_experts && p.args.cost[e] != 0);
    if (lane_id() == 0) s.paid[w] = word;
  }
  uint16_t* histogram = shared_array<uint16_t>(p.layout.histogram);
  for (int i = t; i < threads / 32 * p.args.rule.num_experts; i += threads) histogram[i] = 0;
  if (t == 0) {
    s.first_bad = kNoneBad;
    s.remapped = s.num_exact = s.lost = s.changed_rows = 0;
    s.acted = s.changed = false;
    s.group = p.args.groups ? -1 : 0;
  }
}

// Computes the own choices of row t; a padding row has none. By one warp.
template <int kPerLane>
__device__ void route_own(const RouteParams& p, int t, int num_rows) {
  Shared& s = shared_state();
  const RouteArgs& a = p.args;
  const int k = a.rule.top_k, lane = lane_id(), pair = t * k + lane;
  int16_t* chosen = shared_array<int16_t>(p.layout.chosen);
  if (t >= num_rows) {
    if (lane < k) chosen[pair] = -1, a.ids[pair] = -1, a.weights[pair] = 0;
    return;
  }
  const OwnRoute own = own_route<kPerLane>(a, t, &s.first_bad);
  if (lane < k) {
    chosen[pair] = int16_t(own.expert);
    a.ids[pair] = own.expert;
    a.weights[pair] = own.weight;
    set_bit(s.wanted[lane], own.expert);
  }
  if (lane == 0) {
    shared_array<float>(p.layout.best)[t] = own.best;
    shared_array<uint8_t>(p.layout.confident)[t] = own.confident;
    if (a.exact && a.exact[t]) atomic_add(&s.num_exact, 1);
  }
}

// sere, alias: returns what a choice of row t becomes. sere keeps the choice if the target is outside the row's groups.
__device__ inline int target_of(const RouteParams& p, int t, int own) {
  const int target = shared_array<int16_t>(p.layout.target)[own];
  const bool outside = p.args.keys[t * p.args.rule.num_experts + target] == -INFINITY;
  return outside && p.args.selection.policy == Policy::kSere ? own : target;
}

// sere, alias: returns the weight of choice `lane` after each own weight has been added to the choice that its own became, in the
// order of the choices. By one warp.
__device__ inline float moved_weight(const RouteParams& p, int t, int own, int expert, float weight) {
  const int target = own >= 0 ? target_of(p, t, own) : -1;
  float sum = 0;
  for (int j = 0; j < p.args.rule.top_k; ++j) {
    const int to = shuffle(kFullWarp, target, j);
    const float w = shuffle(kFullWarp, weight, j);
    if (to == expert) sum += w;
  }
  return sum;
}

// Makes the assigned experts of row t its choice. Weights are the row's own mass, shared as the softmax of the gates. By one warp.
template <class Rule>
__device__ void weigh(const RouteParams& p, int t) {
  const RouteArgs& a = p.args;
  const int k = a.rule.top_k, lane = lane_id(), pair = t * k + lane;
  int16_t* chosen = shared_array<int16_t>(p.layout.chosen);
  const int own = lane < k ? chosen[pair] : -1;
  const int expert = lane < k ? shared_array<int16_t>(p.layout.assigned)[pair] : -1;
  double retained = 1;
  const bool changed = ballot(kFullWarp, own != expert) != 0;
  if (changed) {
    const float* gates = a.gates + t * a.rule.num_experts;
    const float own_score = lane < k ? gates[own] : 0, score = expert >= 0 ? gates[expert] : 0;
    const float own_best = from_key(reduce_max(kFullWarp, lane < k ? to_key(own_score) : 0));
    const uint32_t best_key = reduce_max(kFullWarp, expert >= 0 ? to_key(score) : 0);  // 0: replay left the row without experts
    const float best = best_key ? from_key(best_key) : 0;
    const float gate = expert >= 0 ? accurate_exp(score - best) : 0;
    const double mass = warp_sum(gate, k);
    const double own_mass = warp_sum(lane < k ? accurate_exp(own_score - own_best) : 0, k);
    const float own_weight = lane < k ? a.weights[pair] : 0;
    retained = best_key ? fmin(1.0, mass * exp(double(best) - own_best) / own_mass) : 0;
    float weight = 0;
    if (Rule::kMovesWeights && (a.selection.policy == Policy::kSere || a.selection.policy == Policy::kAlias)) {
      weight = moved_weight(p, t, own, expert, own_weight);
    } else {
      double row_weight = is_normalised(a.rule) ? double(a.rule.scale) : warp_sum(own_weight, k);
      if (p.damp > 0) row_weight *= exp(p.damp * log(retained));  // not pow(), which would not be inlined
      if (expert >= 0) weight = float(row_weight * gate / mass);
    }
    if (lane < k) {
      chosen[pair] = int16_t(expert);
      a.ids[pair] = expert;
      a.weights[pair] = expert >= 0 ? weight : 0;
    }
  }
  if (lane == 0) shared_array<double>(p.layout.retained)[t] = retained;
  if (lane == 0 && changed) atomic_add(&shared_state().changed_rows, 1);
}

// Sets the number of groups, and that of the rows if there is one group only. By one warp.
__device__ inline void count_groups(const RouteParams& p, int num_rows) {
  uint32_t count = 1;  // the last group's number + 1
  for (int t = lane_id(); p.args.groups && t < num_rows; t += 32)
    if (const uint32_t n = uint32_t(p.args.groups[t]) + 1; n > count) count = n;
  count = reduce_max(kFullWarp, count);
  if (lane_id() != 0) return;
  shared_state().num_groups = int(count);
  shared_state().num_in_group = num_rows;
}

// Goes on to the next group, and sets what its rows share: wanted, the number of rows and of exact ones, the values of votes, and empty
// sets. By the whole block, with barriers at both ends.
template <class Rule>
__device__ void begin_group(const RouteParams& p, int num_rows) {
  Shared& s = shared_state();
  const RouteArgs& a = p.args;
  const int warps = int(blockDim.x) / 32, k = a.rule.top_k, lane = lane_id(), thread = int(threadIdx.x);
  sync_block();  // all have read group
  for (int i = thread; i < k * kWords; i += int(blockDim.x)) s.wanted[i / kWords][i % kWords] = 0;
  if (thread < kWords) s.admitted[thread] = s.used[thread] = 0;
  if (thread == 0) {
    ++s.group;
    s.remapped = s.num_exact = s.num_in_group = 0;
  }
  sync_block();  // group, wanted, admitted, used, counters
  for (int t = warp_id(); t < num_rows; t += warps) {
    if (!is_current(p, t)) continue;
    if (lane < k) set_bit(s.wanted[lane], shared_array<int16_t>(p.layout.chosen)[t * k + lane]);
    if (lane == 0) {
      shared_array<double>(p.layout.retained)[t] = 1;
      atomic_add(&s.num_in_group, 1);
      if (a.exact && a.exact[t]) atomic_add(&s.num_exact, 1);
    }
  }
  sync_block();  // wanted, num_in_group, num_exact
  if (Rule::kVotes && p.votes && thread == 0) set_vote_values(p);
  sync_block();  // values of votes
}

// Counts the group's own choices. By one warp.
__device__ inline void count_wanted(const RouteParams& p) {
  Shared& s = shared_state();
  uint32_t word = 0;
  for (int j = 0; j < p.args.rule.top_k; ++j) word |= lane_id() < kWords ? s.wanted[j][lane_id()] : 0;
  if (lane_id() < kWords) s.own[lane_id()] |= word;
  const int n = int(reduce_add(kFullWarp, uint32_t(count_bits(word))));
  const int paid = int(reduce_add(kFullWarp, uint32_t(count_bits(lane_id() < kWords ? word & s.paid[lane_id()] : 0))));
  if (lane_id() == 0) s.num_wanted = n, s.paid_wanted = paid;
}

// Writes the pairs ordered by expert, the active experts and the tiles. By the whole block. Returns the number of active experts to the
// first warp.
template <int kPerLane>
__device__ int list_pairs(const RouteParams& p) {
  const RouteArgs& a = p.args;
  const int num_experts = a.rule.num_experts;
  const int16_t* chosen = shared_array<int16_t>(p.layout.chosen);
  const auto expert_of = [chosen](int pair) { return int(chosen[pair]); };
  uint16_t* histogram = shared_array<uint16_t>(p.layout.histogram);
  uint16_t* mine = histogram + warp_id() * num_experts;
  uint32_t* count = shared_array<uint32_t>(p.layout.count);
  uint32_t* tile = shared_array<uint32_t>(p.layout.tile);
  const Range range = range_of_warp(a.max_rows * a.rule.top_k);
  visit_pairs(range, mine, expert_of, [](int, int, int) {});
  sync_block();  // histogram
  sum_warps(histogram, num_experts, [count](int e, uint32_t sum) { count[e] = sum; });
  sync_block();  // histogram, count
  const int active = warp_id() == 0 ? list_experts<kPerLane>(a, p.tile_rows, count, tile) : 0;
  sync_block();  // count, tile
  visit_pairs(range, mine, expert_of, [&](int pair, int e, int before) {
    const int row = e >= 0 ? int(count[e]) + before : -1;
    a.sorted_of_pair[pair] = row;
    if (row >= 0) a.pair_of_sorted[row] = pair;
  });
  write_tiles(a, p.tile_rows, count, tile);
  return active;
}

// The most threads of a block: with groups, a thread needs more than 64 registers under every rule.
template <class Rule>
constexpr int max_threads(bool groups) {
  return groups && Rule::kMaxThreads > 512 ? 512 : Rule::kMaxThreads;
}

// kPerLane: experts per lane, a power of two >= E / 32.
// kGroups: isolation groups are given. It is a kernel of its own, so that steps without groups keep their registers.
template <int kPerLane, class Rule, bool kGroups>
__global__ void __launch_bounds__(max_threads<Rule>(kGroups), 1) route_kernel(const __grid_constant__ RouteParams p) {
  grid_wait();  // scores are complete, and no earlier kernel still reads the outputs
  grid_launch_dependents();
  Shared& s = shared_state();
  const RouteArgs& a = p.args;
  const int warps = int(blockDim.x) / 32, k = a.rule.top_k, lane = lane_id();
  int num_rows = *a.num_rows;
  num_rows = num_rows < 0 ? 0 : num_rows < a.max_rows ? num_rows : a.max_rows;
  initialise(p);
  sync_block();  // Shared, histogram
  for (int t = warp_id(); t < a.max_rows; t += warps) route_own<kPerLane>(p, t, num_rows);
  if (warp_id() == warps - 1) {  // the warp with the fewest rows
    count_groups(p, num_rows);
    if (Rule::kVotes && p.votes && lane == 0) set_vote_values(p);
  }
  sync_block();  // chosen, best, wanted, num_groups, values of votes

  do {
    if (kGroups) begin_group<Rule>(p, num_rows);
    if (warp_id() == warps - 1) count_wanted(p);
    if (int(s.num_in_group) >= p.least_rows && (!a.exact || s.num_exact < s.num_in_group)) {
      // With `resident`, topk admits nothing, and no policy admits anything for a single row.
      if (a.selection.resident > 0 && (a.selection.policy == Policy::kTopk || s.num_in_group < 2))
        admit_exact_rows(p, num_rows);
      else
        Rule::template prepare<kPerLane>(p, num_rows);
      for (int t = warp_id(); t < num_rows; t += warps) {
        if (!is_current(p, t)) continue;
        const int own = lane < k ? shared_array<int16_t>(p.layout.chosen)[t * k + lane] : 0;
        const int expert = Rule::template choose<kPerLane>(p, t, own);
        if (lane >= k) continue;
        shared_array<int16_t>(p.layout.assigned)[t * k + lane] = int16_t(expert);
        if (expert >= 0) set_bit(s.used, expert);
      }
      sync_block();  // assigned, used, num_wanted, remapped
      const bool fewer =
          a.selection.resident > 0 ? count_common(s.used, s.paid) < s.paid_wanted : count_set(s.used) < s.num_wanted;
      const bool guard_hit = p.guard && !fewer;
      if (threadIdx.x == 0) {
        s.acted = true;
        if (!guard_hit) s.changed = true, s.lost += s.remapped;
      }
      for (int t = warp_id(); t < num_rows && !guard_hit; t += warps)
        if (is_current(p, t)) weigh<Rule>(p, t);
    }
    sync_block();  // the final choice, retained, own; all have read what the next group changes
  } while (kGroups && s.group + 1 < s.num_groups);
  if (warp_id() == warps - 1) {
    const int n = count_set(s.own), paid = count_common(s.own, s.paid);
    if (lane == 0) s.num_wanted = n, s.paid_wanted = paid;
  }
  const int active = list_pairs<kPerLane>(p);
  write_uses(a, shared_array<uint32_t>(p.layout.count), [&](int e) { return has_bit(s.own, e); });

  if (warp_id() != 0) return;
  double retained = 0;
  for (int t = lane; t < num_rows; t += 32) retained += s.changed ? shared_array<double>(p.layout.retained)[t] : 1;
  retained = warp_sum(retained);
  const int misses = count_misses(a, shared_array<uint32_t>(p.layout.count));
  if (lane == 0) {
    SelectionStats stats;
    stats.rows = num_rows;
    stats.union_before = s.num_wanted;
    stats.active = active;
    stats.remapped_pairs = int(s.lost);
    stats.changed_rows = int(s.changed_rows);
    stats.misses_before = s.paid_wanted;
    stats.misses = misses;
    stats.retained_mass = retained;
    stats.acted = s.acted;
    stats.guard_hit = s.acted && !s.changed;
    write_stats(a, stats, s.first_bad);
  }
}

// Sets params.layout.
template <class Rule, bool kGroups>
void launch_route_of(RouteParams& params, Stream stream) {
  const RouteArgs& a = params.args;
  const int num_experts = a.rule.num_experts;
  const int threads = 32 * std::clamp(std::max(a.max_rows, (num_experts + 31) / 32), 1, max_threads<Rule>(kGroups) / 32);
  params.layout = route_layout(a.max_rows, num_experts, a.rule.top_k, threads);
  auto* kernel = num_experts <= 64    ? route_kernel<2, Rule, kGroups>
                 : num_experts <= 128 ? route_kernel<4, Rule, kGroups>
                 : num_experts <= 256 ? route_kernel<8, Rule, kGroups>
                                      : route_kernel<16, Rule, kGroups>;
  launch(kernel, 1, threads, size_t(params.layout.bytes), stream, params);
}

template <class Rule>
void launch_route(RouteParams& params, Stream stream) {
  params.args.groups ? launch_route_of<Rule, true>(params, stream) : launch_route_of<Rule, false>(params, stream);
}

// Launches of the policies that are not in route.cu.
void launch_gates(RouteParams& params, Stream stream);  // route_gates.cu: xshare, des_vote, cover
void launch_rows(RouteParams& params, Stream stream);   // route_rows.cu: policies that admit no experts

}  // namespace lynx_rt::cuda::route_state
