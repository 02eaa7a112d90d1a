// Policies of route() that admit no experts: each row chooses by itself. In lynx_literal, sere and capacity its choice also depends
// on the other rows.
//
// sere reads the similarities of the experts that are not primary, at most 4 E^2 bytes. capacity is defined over (choice, row) pairs
// one after the other: one warp takes T k steps, each a read of a row's scores and a search for the best of them, about 1 us
// (estimate). It is for ablations, not for speed.
#include "backend/cuda/route/route_kernel.cuh"

namespace lynx_rt::cuda::route_state {

namespace {

// Returns whether row t keeps its own choices.
__device__ bool is_exact(const RouteParams& p, int t) { return p.args.exact && p.args.exact[t]; }

// sere: computes target[u] of every expert u: u itself where it is primary or no primary expert is similar enough.
__device__ void map_to_primary(const RouteParams& p, const Rows& rows) {
  Shared& s = shared_state();
  const RouteArgs& a = p.args;
  const int num_experts = a.rule.num_experts, thread = int(threadIdx.x), lane = lane_id();
  if (thread < kWords)
    for (int j = 0; j < a.selection.primary; ++j) s.admitted[thread] |= s.wanted[j][thread];
  sync_block();  // admitted
  admit_exact_rows(p, rows);
  int16_t* target = shared_array<int16_t>(p.layout.target);
  for (int u = warp_id(); u < num_experts; u += int(blockDim.x) / 32) {
    int to = u;
    if (!has_bit(s.admitted, u)) {
      const float* similarity = a.selection.similarity + u * num_experts;
      uint32_t key = 0;
      int best = num_experts;
      for (int v = lane; v < num_experts; v += 32)
        if (const uint32_t other = has_bit(s.admitted, v) ? to_key(similarity[v]) : 0; other > key) key = other, best = v;
      const uint32_t top = reduce_max(kFullWarp, key);
      const int winner = int(reduce_min(kFullWarp, key == top ? uint32_t(best) : 0xffffffffu));
      if (top && !(a.selection.rho > 0 && from_key(top) < a.selection.rho)) to = winner;
    }
    if (lane == 0) target[u] = int16_t(to);
  }
}

// capacity: writes every row's choices to `assigned`. By one warp.
template <int kPerLane>
__device__ void assign_capacity(const RouteParams& p, const Rows& rows) {
  const RouteArgs& a = p.args;
  const int k = a.rule.top_k, num_experts = a.rule.num_experts, lane = lane_id();
  const int16_t* chosen = shared_array<int16_t>(p.layout.chosen);
  int16_t* assigned = shared_array<int16_t>(p.layout.assigned);
  uint32_t* load = shared_array<uint32_t>(p.layout.count);  // [E] number of rows that an expert has
  const int num_rows = shared_state().num_in_group;
  const double share = a.selection.factor * double(num_rows * k) / num_experts;
  const uint32_t capacity = uint32_t(std::ceil(share < num_rows ? share : double(num_rows)));
  for (int e = lane; e < num_experts; e += 32) load[e] = 0;
  sync_warp();  // load
  for (int t = 0; t < rows.num_rows; ++t) {
    if (!has_row(p, rows, t) || !is_exact(p, t)) continue;
    if (lane < k) ++load[chosen[t * k + lane]];
    sync_warp();  // load
  }
  for (int j = 0; j < k; ++j)
    for (int t = 0; t < rows.num_rows; ++t) {
      if (!has_row(p, rows, t) || is_exact(p, t)) continue;
      uint32_t key[kPerLane], best_key = 0;
      LYNX_UNROLL
      for (int i = 0; i < kPerLane; ++i) {
        const int e = i * 32 + lane;
        key[i] = e < num_experts && load[e] < capacity ? open_key(a.keys[t * num_experts + e]) : 0;
      }
      for (int earlier = 0; earlier < j; ++earlier) {
        LYNX_UNROLL
        for (int i = 0; i < kPerLane; ++i)
          if (i * 32 + lane == assigned[t * k + earlier]) key[i] = 0;
      }
      int best = -1;
      pick_best(key, 1, best, best_key);
      sync_warp();  // all have read load
      if (lane == 0) {
        assigned[t * k + j] = int16_t(best_key ? best : -1);
        if (best_key) ++load[best];
      }
      sync_warp();  // assigned, load
    }
}

// lynx_literal: takes the k best of the scores plus the other rows' votes, without experts that are not worth running. A confident
// row keeps its first choice.
template <int kPerLane>
__device__ int choose_literal(const RouteParams& p, int t, int own) {
  const Shared& s = shared_state();
  const Selection& selection = p.args.selection;
  const int k = p.args.rule.top_k, num_experts = p.args.rule.num_experts, lane = lane_id();
  const uint64_t* votes = shared_array<uint64_t>(p.layout.votes);
  const double best = shared_array<float>(p.layout.best)[t];
  uint32_t key[kPerLane], unused;
  LYNX_UNROLL
  for (int i = 0; i < kPerLane; ++i) {
    const int e = i * 32 + lane;
    key[i] = 0;
    if (e >= num_experts) continue;
    const float score = p.args.keys[t * num_experts + e];
    if (score == -INFINITY) continue;
    const double position = selection.alpha * (best - score);
    const uint64_t own_vote = position < s.num_bins ? s.value[int(position)] : 0;
    key[i] = to_key(float(score + selection.lambda * (double(votes[e] - own_vote) / double(s.value[0]))));
  }
  int expert = 0;
  pick_best(key, k, expert, unused);
  const int first = shuffle(kFullWarp, own, 0);
  const bool lost = ballot(kFullWarp, lane < k && expert == first) == 0;
  if (lost && lane == k - 1 && shared_array<uint8_t>(p.layout.confident)[t]) expert = first;
  if (p.refill_limit == INFINITY) return expert;

  const float score = lane < k ? p.args.keys[t * num_experts + expert] : 0;
  const float kept = from_key(reduce_max(kFullWarp, lane < k ? to_key(score) : 0));
  bool chosen = false;  // the row itself chose the expert
  for (int j = 0; j < k; ++j) chosen |= shuffle(kFullWarp, own, j) == expert;
  return !chosen && double(kept) - score > p.refill_limit ? -1 : expert;
}

// deny_rank: takes the best k + 1 without the one of the denied rank; -1 where there are only k.
template <int kPerLane>
__device__ int choose_denied(const RouteParams& p, int t) {
  const int num_experts = p.args.rule.num_experts, lane = lane_id();
  uint32_t key[kPerLane], expert_key = 0;
  LYNX_UNROLL
  for (int i = 0; i < kPerLane; ++i) {
    const int e = i * 32 + lane;
    key[i] = e < num_experts ? open_key(p.args.keys[t * num_experts + e]) : 0;
  }
  int expert = -1;
  pick_best(key, p.args.rule.top_k + 1, expert, expert_key);
  if (expert_key == 0) expert = -1;
  const int next = shuffle_down(kFullWarp, expert, 1);
  return lane < p.args.selection.rank ? expert : next;
}

struct ChooseByRow {
  static constexpr bool kVotes = true, kMovesWeights = true;
  static constexpr int kMaxThreads = 512;  // because of lynx_literal

  template <int kPerLane>
  static __device__ void prepare(const RouteParams& p, const Rows& rows) {
    const RouteArgs& a = p.args;
    switch (a.selection.policy) {
      case Policy::kLynxLiteral: count_votes(p, rows); break;
      case Policy::kSere: map_to_primary(p, rows); break;
      case Policy::kAlias:
        if (const int e = int(threadIdx.x); e < a.rule.num_experts)
          shared_array<int16_t>(p.layout.target)[e] = int16_t(a.selection.alias[e]);
        break;
      case Policy::kCapacity:
        if (warp_id() == 0) assign_capacity<kPerLane>(p, rows);
        break;
      default: return;
    }
    sync_block();  // votes, target, assigned
  }

  template <int kPerLane>
  static __device__ int choose(const RouteParams& p, int t, int own) {
    if (is_exact(p, t)) return own;
    const int k = p.args.rule.top_k, lane = lane_id();
    int expert = new_choice<kPerLane>(p, t, own);
    const bool none = ballot(kFullWarp, lane < k && expert >= 0) == 0;
    if (none && lane == 0 && p.args.selection.policy != Policy::kReplay) expert = own;  // the row's first choice
    bool kept = false;
    for (int j = 0; j < k; ++j) kept |= shuffle(kFullWarp, expert, j) == own;
    const uint32_t lost = ballot(kFullWarp, lane < k && !kept);
    if (lost && lane == 0) atomic_add(&shared_state().remapped, uint32_t(count_bits(lost)));
    return expert;
  }

 private:
  template <int kPerLane>
  static __device__ int new_choice(const RouteParams& p, int t, int own) {
    const Selection& selection = p.args.selection;
    const int k = p.args.rule.top_k, lane = lane_id(), pair = t * k + lane;
    switch (selection.policy) {
      case Policy::kLynxLiteral: return choose_literal<kPerLane>(p, t, own);
      case Policy::kDenyRank: return choose_denied<kPerLane>(p, t);
      case Policy::kSere:
      case Policy::kAlias: {
        const int target = lane < k ? target_of(p, t, own) : -1;
        return lane == lowest_bit(match_any(kFullWarp, uint32_t(target))) ? target : -1;
      }
      case Policy::kSkip: {
        const double gap = double(shared_array<float>(p.layout.best)[t]) - p.args.keys[t * p.args.rule.num_experts + own];
        return lane == 0 || gap <= p.skip_limit ? own : -1;
      }
      case Policy::kTopJ: return lane < selection.j ? own : -1;
      case Policy::kCapacity: return lane < k ? shared_array<int16_t>(p.layout.assigned)[pair] : -1;
      default: return lane < k ? selection.replay[pair] : -1;  // kReplay
    }
  }
};

}  // namespace

void launch_rows(RouteParams& params, Stream stream) { launch_route<ChooseByRow>(params, stream); }

}  // namespace lynx_rt::cuda::route_state
