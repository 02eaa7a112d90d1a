// The model's own routing of one row, by one warp. Lane l has experts l, l + 32, ..
#pragma once
#include <cmath>

#include "backend/cuda/route/route.h"
#include "backend/cuda/runtime/ordered_key.cuh"
#include "backend/cuda/runtime/ptx.cuh"
#include "routing/router_keys.h"

namespace lynx_rt::cuda::route_state {

template <class T>
__device__ T* shared_array(int offset) {
  return reinterpret_cast<T*>(dynamic_shared() + offset);
}

// Returns the sum over the lanes below `count`, to these lanes. The other lanes must pass 0.
__device__ inline double warp_sum(double v, int count = 32) {
  for (int bit = 16; bit > 0; bit /= 2)
    if (bit < count) v += shuffle_xor(kFullWarp, v, bit);
  return v;
}

// Gives lane j < k the j-th best expert and its key (0 = no expert), ties to the lower expert. Overwrites `key`.
template <int kPerLane>
__device__ void pick_best(uint32_t (&key)[kPerLane], int k, int& expert, uint32_t& expert_key) {
  for (int j = 0; j < k; ++j) {
    uint32_t mine = key[0];
    int at = 0;
    LYNX_UNROLL
    for (int i = 1; i < kPerLane; ++i)
      if (key[i] > mine) mine = key[i], at = i;
    const uint32_t top = reduce_max(kFullWarp, mine);
    const int winner = int(reduce_min(kFullWarp, mine == top ? uint32_t(at * 32 + lane_id()) : 0xffffffffu));
    if (lane_id() == j) expert = winner, expert_key = top;
    LYNX_UNROLL
    for (int i = 0; i < kPerLane; ++i)
      if (i * 32 + lane_id() == winner) key[i] = 0;
  }
}

// Returns the integer key of an expert that the row may take; 0 outside its groups.
__device__ inline uint32_t open_key(float key) { return key == -INFINITY ? 0 : to_key(key); }

// sparsemixer: sums exp(z - best) over the experts near the `best` logit, without expert `taken`: see routing/selector.cc.
__device__ inline double near_mass(const float* z, int num_experts, float best, int taken, float jitter) {
  double sum = 0;
  for (int e = lane_id(); e < num_experts; e += 32) {
    const float size = z[e] < 0 ? -z[e] : z[e];
    const bool far = (best - z[e]) / (size > best ? size : best) > 2 * jitter;  // 0 / 0 counts as near
    if (e != taken && !far) sum += accurate_exp(z[e] - best);
  }
  return warp_sum(sum);
}

struct OwnRoute {
  int expert;  // lane j < k has the j-th choice and its weight
  float weight;
  float best;      // the best key
  bool confident;  // lynx, lynx_literal: only one expert is in bin 0
};

inline constexpr uint32_t kNoneBad = 0xffffffffu;

// Routes row t of the launch. Lowers *first_bad to the index of the row's first non-finite score, if any.
template <int kPerLane>
__device__ OwnRoute own_route(const RouteArgs& a, int t, uint32_t* first_bad) {
  const int k = a.rule.top_k, num_experts = a.rule.num_experts, lane = lane_id();
  const float *keys = a.keys + t * num_experts, *gates = a.gates + t * num_experts;
  const uint32_t outside = a.keys == a.scores ? 0 : 0xff800000u;  // -inf, the only non-finite key that is allowed
  // The first half of a lane's experts need no test: kPerLane is the least power of two (2 at least) that holds all experts.
  const auto has_expert = [=](int i) { return (kPerLane > 2 && i < kPerLane / 2) || i * 32 + lane < num_experts; };
  float score[kPerLane];
  LYNX_UNROLL
  for (int i = 0; i < kPerLane; ++i) score[i] = has_expert(i) ? keys[i * 32 + lane] : 0;  // all loads come before the first use
  uint32_t key[kPerLane], best_key = 0, bad = kNoneBad;
  LYNX_UNROLL
  for (int i = 0; i < kPerLane; ++i) {
    const int e = i * 32 + lane;
    key[i] = has_expert(i) ? to_key(score[i]) : 0;
    if (key[i] > best_key) best_key = key[i];
    const bool finite = (float_bits(score[i]) & 0x7f800000u) != 0x7f800000u || float_bits(score[i]) == outside;
    if (!finite && bad == kNoneBad) bad = uint32_t(t * num_experts + e);
  }
  if (bad != kNoneBad) atomic_min(first_bad, bad);
  OwnRoute own = {};
  own.best = from_key(reduce_max(kFullWarp, best_key));

  const bool lynx = a.selection.policy == Policy::kLynx || a.selection.policy == Policy::kLynxLiteral;
  uint32_t in_bin_0 = 0;
  LYNX_UNROLL
  for (int i = 0; i < kPerLane; ++i) {
    if (i * 32 + lane >= num_experts) continue;
    if (lynx) in_bin_0 += a.selection.alpha * (double(own.best) - from_key(key[i])) < 1;
  }
  if (lynx) own.confident = reduce_add(kFullWarp, in_bin_0) == 1;

  uint32_t expert_key = 0;
  pick_best(key, k, own.expert, expert_key);
  const RouterRule& rule = a.rule;
  const float gate = lane < k ? gates[own.expert] : 0;
  if (rule.kind == RouterKind::kSparsemixer) {
    const int first = shuffle(kFullWarp, own.expert, 0);
    double mass = 1;
    for (int j = 0; j < 2; ++j) {
      const double near = near_mass(gates, num_experts, shuffle(kFullWarp, gate, j), j ? first : -1, rule.jitter);
      if (lane == j) mass = near;
    }
    own.weight = float(rule.scale / mass);
    return own;
  }
  const float best = from_key(reduce_max(kFullWarp, lane < k ? to_key(gate) : 0));  // the largest gate of the chosen experts
  double weight = lane < k ? accurate_exp(gate - best) : 0;
  double denominator = warp_sum(weight, k);
  if (!is_normalised(rule)) {
    double one = 1;  // the weight of a gate of 1
    if (rule.kind == RouterKind::kSigmoid) {
      const double best_gate = exp_negative(-double(best));
      weight *= best_gate;
      denominator *= best_gate;
    } else {
      one = 0;
      for (int e = lane; e < num_experts; e += 32) one += accurate_exp(gates[e] - best);
      one = warp_sum(one);
    }
    denominator = rule.norm_topk ? fmax(denominator, rule.min_sum * one) : one;
  }
  own.weight = float(rule.scale * weight / denominator);
  return own;
}

}  // namespace lynx_rt::cuda::route_state
