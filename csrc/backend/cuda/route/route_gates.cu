// Policies of route() that admit experts by sums of gates: xshare, des_vote, cover.
//
// A gate takes an exponential series in double precision, about 26 operations: once per score for the sum of its row and, in
// xshare and cover, once more, 52 T E in all. At T = 16, E = 128 that is about 1 us where double precision runs at half speed and
// 30 us where it runs at 1/64 (estimates). Keeping the first results would take 2 E / 32 registers. The cover is computed by one
// warp: E / 32 (1 + T / 32) steps a round, one round per expert that it admits.
#include "backend/cuda/route/route_kernel.cuh"
#include "routing/gate_mass.h"

namespace lynx_rt::cuda::route_state {

namespace {

// Sums of gates are up to 2^38 (256 rows of 2^30). Their halves are added separately, because shared memory adds 32 bits in one
// instruction, but 64 bits in a compare-and-swap loop.
constexpr int kLowBits = 15;

// Adds the gates of row t, of all experts or of its own choices. By one warp.
template <int kPerLane>
__device__ void add_gates(const RouteParams& p, int t, bool own_only, uint32_t* low, uint32_t* high) {
  const RouteArgs& a = p.args;
  const int num_experts = a.rule.num_experts, lane = lane_id();
  const float* keys = a.keys + t * num_experts;
  const double best = shared_array<float>(p.layout.best)[t];
  uint64_t sum = 0;
  for (int i = 0; i < kPerLane; ++i)
    if (const int e = i * 32 + lane; e < num_experts) sum += exp_mass(best - keys[e]);
  for (int bit = 16; bit > 0; bit /= 2) sum += shuffle_xor(kFullWarp, sum, bit);
  if (sum == 0) return;  // the row has no finite score
  const auto add = [&](int e) {
    const uint32_t gate = uint32_t(gate_mass(exp_mass(best - keys[e]), sum));
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

// Returns the halves of the sums: low[e], and high[e] = low[E + e].
__device__ uint32_t* gate_sums(const RouteParams& p) { return shared_array<uint32_t>(p.layout.partial); }

__device__ void clear(uint32_t* words, int count) {
  for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) words[i] = 0;
}

// Writes the sum of the gates of expert e to votes[e]. By the whole block, with a barrier.
__device__ void join_sums(const RouteParams& p) {
  const int num_experts = p.args.rule.num_experts, thread = int(threadIdx.x);
  const uint32_t *low = gate_sums(p), *high = low + num_experts;
  uint64_t* votes = shared_array<uint64_t>(p.layout.votes);
  if (thread < num_experts) votes[thread] = (uint64_t(high[thread]) << kLowBits) + low[thread];
  sync_block();  // votes
}

// Admits the `room` experts of s.open with the most votes. By the whole block; the caller's next barrier makes them visible.
__device__ void admit_best(const RouteParams& p, int room) {
  Shared& s = shared_state();
  const int num_experts = p.args.rule.num_experts, thread = int(threadIdx.x);
  const uint64_t* votes = shared_array<uint64_t>(p.layout.votes);
  // Thread e counts the experts that come before expert e.
  bool admit = thread < num_experts && has_bit(s.open, thread);
  if (admit) {
    int before = 0;
    for (int e = 0; e < num_experts && before < room; ++e)
      before += has_bit(s.open, e) && (votes[e] > votes[thread] || (votes[e] == votes[thread] && e < thread));
    admit = before < room;
  }
  const uint32_t word = ballot(kFullWarp, admit);
  if (word && lane_id() == 0) atomic_or(&s.admitted[warp_id()], word);
}

struct AdmitByGates {
  static constexpr bool kVotes = false, kMovesWeights = false;
  static constexpr int kMaxThreads = 1024;

  template <int kPerLane>
  static __device__ void prepare(const RouteParams& p, const Rows& rows) {
    Shared& s = shared_state();
    const RouteArgs& a = p.args;
    const bool own_only = a.selection.policy == Policy::kDesVote;
    const int num_experts = a.rule.num_experts, thread = int(threadIdx.x);
    uint32_t* sums = gate_sums(p);
    clear(sums, 2 * num_experts);
    if (thread < kWords) {
      uint32_t first = 0, all = 0;
      for (int j = 0; j < a.rule.top_k; ++j) {
        all |= s.wanted[j][thread];
        if (!own_only && j < a.selection.k0) first |= s.wanted[j][thread];
      }
      s.admitted[thread] = first;
      s.open[thread] = (own_only ? all : ~uint32_t{0}) & ~first;
    }
    sync_block();  // sums, admitted, open
    for (int t = warp_id(); t < rows.num_rows; t += int(blockDim.x) / 32)
      if (has_row(p, rows, t)) add_gates<kPerLane>(p, t, own_only, sums, sums + num_experts);
    const int room = p.least_experts - count_set(s.admitted);
    sync_block();  // sums; all have read admitted
    join_sums(p);
    admit_best(p, room);
    admit_exact_rows(p, rows);
  }

  template <int kPerLane>
  static __device__ int choose(const RouteParams& p, int t, int own) {
    return choose_admitted<kPerLane>(p, t, own);
  }
};

// Sets the bit of row t in `serves` of the experts that serve it. By one warp.
template <int kPerLane>
__device__ void mark_served(const RouteParams& p, int t, uint32_t* serves) {
  const int num_experts = p.args.rule.num_experts;
  const float* keys = p.args.keys + t * num_experts;
  const double best = shared_array<float>(p.layout.best)[t];
  for (int i = 0; i < kPerLane; ++i) {
    const int e = i * 32 + lane_id();
    if (e < num_experts && best - keys[e] <= p.args.selection.delta) atomic_or(&serves[t / 32 * num_experts + e], 1u << (t % 32));
  }
}

// Admits a greedy cover of the rows. By one warp.
template <int kPerLane>
__device__ void admit_cover(const RouteParams& p, const Rows& rows) {
  constexpr int kRowsAt = 40;  // above every sum of gates
  Shared& s = shared_state();
  const int num_experts = p.args.rule.num_experts, num_rows = rows.num_rows, lane = lane_id(), words = (num_rows + 31) / 32;
  const uint32_t* serves = shared_array<uint32_t>(p.layout.serves);
  const uint64_t* votes = shared_array<uint64_t>(p.layout.votes);
  const int first = lane * 32;
  uint32_t left = first + 32 <= num_rows ? ~uint32_t{0}
                  : first < num_rows     ? (1u << (num_rows - first)) - 1
                                         : 0;  // rows not served yet
  for (int i = 0; p.args.groups && i < 32; ++i)
    if (first + i < num_rows && !has_row(p, rows, first + i)) left &= ~(1u << i);
  while (ballot(kFullWarp, left)) {
    uint32_t served[kPerLane] = {};  // how many rows the expert would serve
    for (int w = 0; w < words; ++w) {
      const uint32_t of_word = shuffle(kFullWarp, left, w);
      LYNX_UNROLL
      for (int i = 0; i < kPerLane; ++i)
        if (const int e = i * 32 + lane; e < num_experts)
          served[i] += uint32_t(count_bits(serves[w * num_experts + e] & of_word));
    }
    uint64_t most = 0;
    int expert = kMaxRouteExperts;  // no expert
    LYNX_UNROLL
    for (int i = 0; i < kPerLane; ++i) {
      if (served[i] == 0) continue;
      const uint64_t value = (uint64_t(served[i]) << kRowsAt) + votes[i * 32 + lane];
      if (value > most) most = value, expert = i * 32 + lane;
    }
    largest_of_warp(most, expert);
    if (expert == kMaxRouteExperts) break;  // no expert serves the rows that are left: their scores are not finite
    if (lane < words) left &= ~serves[lane * num_experts + expert];
    if (lane == 0) set_bit(s.admitted, expert);
  }
  sync_warp();  // admitted
  if (lane < kWords) s.open[lane] = ~s.admitted[lane];
}

struct AdmitCover {
  static constexpr bool kVotes = false, kMovesWeights = false;
  static constexpr int kMaxThreads = 1024;

  template <int kPerLane>
  static __device__ void prepare(const RouteParams& p, const Rows& rows) {
    const int num_experts = p.args.rule.num_experts;
    uint32_t *sums = gate_sums(p), *serves = shared_array<uint32_t>(p.layout.serves);
    clear(sums, 2 * num_experts);
    clear(serves, (rows.num_rows + 31) / 32 * num_experts);
    sync_block();  // sums, serves
    for (int t = warp_id(); t < rows.num_rows; t += int(blockDim.x) / 32) {
      if (!has_row(p, rows, t)) continue;
      add_gates<kPerLane>(p, t, false, sums, sums + num_experts);
      mark_served<kPerLane>(p, t, serves);
    }
    sync_block();  // sums, serves
    join_sums(p);
    if (warp_id() == 0) admit_cover<kPerLane>(p, rows);
    sync_block();  // admitted, open
    const int room = p.least_experts - count_set(shared_state().admitted);
    sync_block();  // all have read admitted
    admit_best(p, room);
    admit_exact_rows(p, rows);
  }

  template <int kPerLane>
  static __device__ int choose(const RouteParams& p, int t, int own) {
    return choose_admitted<kPerLane>(p, t, own);
  }
};

}  // namespace

void launch_gates(RouteParams& params, Stream stream) {
  if (params.args.selection.policy == Policy::kCover) return launch_route<AdmitCover>(params, stream);
  launch_route<AdmitByGates>(params, stream);
}

}  // namespace lynx_rt::cuda::route_state
