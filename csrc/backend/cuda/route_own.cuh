// The model's own routing of one row, by one warp. Lane l holds experts l, l + 32, ..
#pragma once
#include <cmath>

#include "backend/cuda/ordered_key.cuh"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/route.h"

namespace lynx_rt::cuda::route_state {

template <class T>
__device__ T* shared_array(int offset) {
  return reinterpret_cast<T*>(dynamic_shared() + offset);
}

// Sum over the lanes below `count`, for these lanes; those above hold 0.
__device__ inline double warp_sum(double v, int count = 32) {
  for (int bit = 16; bit > 0; bit /= 2)
    if (bit < count) v += shuffle_xor(kFullWarp, v, bit);
  return v;
}

// The j-th best expert goes to lane j < k, with its key (0 stands for no expert): rising rank, ties to the lower expert. Uses up
// `key`.
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

struct OwnRoute {
  int expert;  // of lane j < k: the j-th choice, and its weight
  float weight;
  float best;      // the best score
  bool confident;  // lynx, lynx_literal: one expert alone is in bin 0
};

// Row t of the launch. Lowers *first_bad to the index of the first score that is not finite.
template <int kPerLane>
__device__ OwnRoute own_route(const RouteArgs& a, int t, uint32_t* first_bad) {
  const int k = a.rule.top_k, num_experts = a.rule.num_experts, lane = lane_id();
  const float* scores = a.scores + t * num_experts;
  uint32_t key[kPerLane], best_key = 0;
  LYNX_UNROLL
  for (int i = 0; i < kPerLane; ++i) {
    const int e = i * 32 + lane;
    const float score = e < num_experts ? scores[e] : 0;
    key[i] = e < num_experts ? to_key(score) : 0;
    if (key[i] > best_key) best_key = key[i];
    if ((float_bits(score) & 0x7f800000u) == 0x7f800000u) atomic_min(first_bad, uint32_t(t * num_experts + e));
  }
  OwnRoute own = {};
  own.best = from_key(reduce_max(kFullWarp, best_key));

  const bool lynx = a.selection.policy == Policy::kLynx || a.selection.policy == Policy::kLynxLiteral;
  uint32_t in_bin_0 = 0;
  double denominator = 0;  // softmax over all experts
  LYNX_UNROLL
  for (int i = 0; i < kPerLane; ++i) {
    if (i * 32 + lane >= num_experts) continue;
    const float score = from_key(key[i]);
    if (lynx) in_bin_0 += a.selection.alpha * (double(own.best) - score) < 1;
    if (!a.rule.norm_topk) denominator += expf(score - own.best);
  }
  if (lynx) own.confident = reduce_add(kFullWarp, in_bin_0) == 1;

  uint32_t expert_key = 0;
  pick_best(key, k, own.expert, expert_key);
  const float weight = lane < k ? expf(from_key(expert_key) - own.best) : 0;
  denominator = warp_sum(a.rule.norm_topk ? double(weight) : denominator, a.rule.norm_topk ? k : 32);
  own.weight = float(weight / denominator);
  return own;
}

}  // namespace lynx_rt::cuda::route_state
