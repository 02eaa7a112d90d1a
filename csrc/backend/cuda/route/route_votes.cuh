// The votes of lynx and lynx_literal, counted as in routing/selector_admit.cc. They are integers, so their sums do not depend on an
// order.
#pragma once
#include "backend/cuda/route/route_state.cuh"
#include "backend/cuda/runtime/ptx.cuh"

namespace lynx_rt::cuda::route_state {

// Gives all lanes the largest of their values and its expert, ties to the lower expert. A lane without an expert passes value 0 and an
// expert above all others.
__device__ inline void largest_of_warp(uint64_t& value, int& expert) {
  for (int bit = 16; bit > 0; bit /= 2) {
    const uint64_t other_value = shuffle_xor(kFullWarp, value, bit);
    const int other = shuffle_xor(kFullWarp, expert, bit);
    if (other_value > value || (other_value == value && other < expert)) value = other_value, expert = other;
  }
}

// Sets the values of votes and the sum that admits an expert. By one thread.
__device__ inline void set_vote_values(const RouteParams& p) {
  __extension__ using uint128 = unsigned __int128;
  Shared& s = shared_state();
  const uint64_t voters = s.num_in_group > 0 ? uint64_t(s.num_in_group) : 1;
  const uint64_t limit = (uint64_t{1} << 62) / voters;
  uint64_t power = 1;
  s.num_bins = 0;
  for (; s.num_bins < p.args.selection.beta && power <= limit; ++s.num_bins) power *= voters;
  uint64_t value = 1;
  for (int bin = s.num_bins - 1; bin >= 0; --bin, value *= voters) s.value[bin] = value;

  // The least integer >= theta * top vote.
  if (p.theta_exponent > 63) {
    s.needed = ~uint64_t{0};
    return;
  }
  uint128 product = uint128(p.theta_fraction) * s.value[0];
  const int shift = 53 - p.theta_exponent < 127 ? 53 - p.theta_exponent : 127;
  if (shift <= 0) {
    product <<= -shift;
  } else {
    product = (product + ((uint128(1) << shift) - 1)) >> shift;
  }
  s.needed = product >> 64 ? ~uint64_t{0} : uint64_t(product);
}

// Sums the votes. Returns those of expert e to thread e; after the next barrier they are in the array `votes`, too. By the whole
// block: a thread sums the votes for one expert of every (threads / E)-th row.
__device__ inline uint64_t count_votes(const RouteParams& p, const Rows& rows) {
  Shared& s = shared_state();
  const RouteArgs& a = p.args;
  const int num_experts = a.rule.num_experts, thread = int(threadIdx.x);
  const int parts = int(blockDim.x) / num_experts, part = thread / num_experts;
  uint64_t* partial = shared_array<uint64_t>(p.layout.partial);
  const float* best = shared_array<float>(p.layout.best);
  if (part < parts) {
    const int e = thread % num_experts;
    uint64_t sum = 0;
    for (int t = part; t < rows.num_rows; t += parts) {
      if (!has_row(p, rows, t)) continue;
      const float score = a.keys[t * num_experts + e];
      if ((best[t] - score) * p.filter >= float(s.num_bins)) continue;  // true for most experts, and saves the double precision
      const double position = a.selection.alpha * (double(best[t]) - score);
      if (position < s.num_bins) sum += s.value[int(position)];
    }
    partial[part * num_experts + e] = sum;
  }
  sync_block();  // partial
  uint64_t sum = 0;
  if (thread < num_experts) {
    for (int i = 0; i < parts; ++i) sum += partial[i * num_experts + thread];
    shared_array<uint64_t>(p.layout.votes)[thread] = sum;
  }
  return sum;
}

}  // namespace lynx_rt::cuda::route_state
