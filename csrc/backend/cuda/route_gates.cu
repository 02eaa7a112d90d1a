// Policies of route() that admit experts by sums of gates: xshare, des_vote.
//
// A gate takes an exponential series in double precision, about 26 operations, once per score for the sum of its row and, in
// xshare, once more: 52 T E in all. At T = 16, E = 128 that is about 1 us where double precision runs at half speed and 30 us
// where it runs at 1/64 (estimates). Keeping the first results would take 2 E / 32 registers.
#include "backend/cuda/route_kernel.cuh"
#include "backend/gate_mass.h"

namespace lynx_rt::cuda::route_state {

namespace {

// Sums of gates are up to 2^38 (256 rows of 2^30). Their halves are added apart: shared memory adds 32 bits in one instruction,
// and 64 by trying.
constexpr int kLowBits = 15;

// Adds the gates of row t, all or those of its own choices. By one warp.
template <int kPerLane>
__device__ void add_gates(const RouteParams& p, int t, bool own_only, uint32_t* low, uint32_t* high) {
  const RouteArgs& a = p.args;
  const int num_experts = a.rule.num_experts, lane = lane_id();
  const float* scores = a.scores + t * num_experts;
  const double best = shared_array<float>(p.layout.best)[t];
  uint64_t sum = 0;
  for (int i = 0; i < kPerLane; ++i)
    if (const int e = i * 32 + lane; e < num_experts) sum += exp_mass(best - scores[e]);
  for (int bit = 16; bit > 0; bit /= 2) sum += shuffle_xor(kFullWarp, sum, bit);
  if (sum == 0) return;  // no score is finite
  const auto add = [&](int e) {
    const uint32_t gate = uint32_t(gate_mass(exp_mass(best - scores[e]), sum));
    if (gate == 0) return;
    atomic_add(&low[e], gate & ((1u << kLowBits) - 1));
    atomic_add(&high[e], gate >> kLowBits);
  };
  if (own_only) {
    if (lane < a.rule.top_k) add(shared_array<int16_t>(p.layout.chosen)[t * a.rule.top_k + lane]);
  } else {
    for (int i = 0; i < kPerLane; ++i)
      if (const int e = i * 32 + lane; e < num_experts) add(e);
  }
}

struct AdmitByGates {
  static constexpr bool kVotes = false, kMovesWeights = false;
  static constexpr int kMaxThreads = 1024;

  template <int kPerLane>
  static __device__ void prepare(const RouteParams& p, int num_rows) {
    Shared& s = shared_state();
    const RouteArgs& a = p.args;
    const bool own_only = a.selection.policy == Policy::kDesVote;
    const int num_experts = a.rule.num_experts, thread = int(threadIdx.x);
    uint32_t* low = shared_array<uint32_t>(p.layout.partial);  // [E], and so is high
    uint32_t* high = low + num_experts;
    uint64_t* votes = shared_array<uint64_t>(p.layout.votes);
    for (int i = thread; i < 2 * num_experts; i += int(blockDim.x)) low[i] = 0;
    if (thread < kWords) {
      uint32_t first = 0, all = 0;
      for (int j = 0; j < a.rule.top_k; ++j) {
        all |= s.wanted[j][thread];
        if (!own_only && j < a.selection.k0) first |= s.wanted[j][thread];
      }
      s.admitted[thread] = first;
      s.open[thread] = (own_only ? all : ~uint32_t{0}) & ~first;
    }
    sync_block();  // low, high, admitted, open
    for (int t = warp_id(); t < num_rows; t += int(blockDim.x) / 32) add_gates<kPerLane>(p, t, own_only, low, high);
    const int room = p.least_experts - count_set(s.admitted);
    sync_block();  // low, high
    if (thread < num_experts) votes[thread] = (uint64_t(high[thread]) << kLowBits) + low[thread];
    sync_block();  // votes; all have read admitted

    // Thread e counts who goes before expert e.
    bool admit = thread < num_experts && has_bit(s.open, thread);
    if (admit) {
      int before = 0;
      for (int e = 0; e < num_experts && before < room; ++e)
        before += has_bit(s.open, e) && (votes[e] > votes[thread] || (votes[e] == votes[thread] && e < thread));
      admit = before < room;
    }
    const uint32_t word = ballot(kFullWarp, admit);
    if (word && lane_id() == 0) atomic_or(&s.admitted[warp_id()], word);
    admit_exact_rows(p, num_rows);
  }

  template <int kPerLane>
  static __device__ int choose(const RouteParams& p, int t, int own) {
    return choose_admitted<kPerLane>(p, t, own);
  }
};

}  // namespace

void launch_gates(RouteParams& params, Stream stream) { launch_route<AdmitByGates>(params, stream); }

}  // namespace lynx_rt::cuda::route_state
