// Selector and dispatch of up to 256 rows, one launch of one block; route.h says what comes out, cpu/select.h how the policies
// are read. route_many.cu has more rows.
//
// Work split. A row belongs to one warp, in which lane l holds experts l, l + 32, ..; pairs of a row belong to lanes 0..k-1.
// Sets of experts are E / 32 words of bits. Votes: a thread sums the votes of one expert from every (threads / E)-th row, as
// integers, so that no order changes them. Lists: a warp owns a range of pairs; a histogram per warp keeps their order.
// Memory traffic: scores are read once, once more for the votes and once more for rows whose choice is not admitted: at most
// 12 T E bytes, from L2 after the first; 16 T k bytes are written, and 12 per tile.
// Limits: T <= 256, E <= 512, k <= 16. A block has a warp per row, up to 32, and a thread per expert. One block: at T = 256 a
// cluster or a second launch may be faster (TODO measure on a GPU).
#include "backend/cuda/route.h"

#include <algorithm>
#include <cmath>

#include "backend/cuda/launch.h"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/route_lists.cuh"
#include "backend/cuda/route_many.h"
#include "backend/cuda/route_state.cuh"
#include "base/error.h"

namespace lynx_rt::cuda {

using namespace route_state;

namespace {

__extension__ using uint128 = unsigned __int128;

// Values of a vote per bin and the votes that admit, as cpu/select.cc computes them. One thread.
__device__ void set_vote_values(const RouteParams& p, int num_rows) {
  Shared& s = shared_state();
  const uint64_t voters = num_rows > 0 ? uint64_t(num_rows) : 1;
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

__device__ void initialise(const RouteParams& p, int num_rows) {
  Shared& s = shared_state();
  const int threads = int(blockDim.x), t = int(threadIdx.x);
  for (int i = t; i < kMaxRouteTopK * kWords; i += threads) s.wanted[i / kWords][i % kWords] = 0;
  if (t < kWords) s.admitted[t] = s.used[t] = 0;
  uint16_t* histogram = shared_array<uint16_t>(p.layout.histogram);
  for (int i = t; i < threads / 32 * p.args.rule.num_experts; i += threads) histogram[i] = 0;
  if (t == 0) {
    s.first_bad = 0xffffffffu;
    s.remapped = s.num_exact = 0;
    set_vote_values(p, num_rows);
  }
}

// The own choice of row t, by one warp; a row that only pads gets none.
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

// lynx: sums the votes, admits by threshold and by confident rows, and fills up to k. By the whole block.
__device__ void admit_lynx(const RouteParams& p, int num_rows) {
  Shared& s = shared_state();
  const RouteArgs& a = p.args;
  const int num_experts = a.rule.num_experts, thread = int(threadIdx.x), k = a.rule.top_k;
  const int groups = int(blockDim.x) / num_experts, group = thread / num_experts;
  uint64_t* votes = shared_array<uint64_t>(p.layout.votes);
  uint64_t* partial = shared_array<uint64_t>(p.layout.partial);
  const float* best = shared_array<float>(p.layout.best);

  if (group < groups) {
    const int e = thread % num_experts;
    uint64_t sum = 0;
    for (int t = group; t < num_rows; t += groups) {
      const float score = a.scores[t * num_experts + e];
      if ((best[t] - score) * p.filter >= float(s.num_bins)) continue;  // most are: spares the double precision
      const double position = a.selection.alpha * (double(best[t]) - score);
      if (position < s.num_bins) sum += s.value[int(position)];
    }
    partial[group * num_experts + e] = sum;
  }
  sync_block();  // partial

  uint64_t sum = 0;
  if (thread < num_experts) {
    for (int g = 0; g < groups; ++g) sum += partial[g * num_experts + thread];
    votes[thread] = sum;
  }
  const uint32_t word = ballot(kFullWarp, thread < num_experts && sum >= s.needed);
  if (lane_id() == 0 && warp_id() < kWords) s.admitted[warp_id()] = word;
  sync_block();  // votes, admitted

  if (thread < num_rows && shared_array<uint8_t>(p.layout.confident)[thread])
    set_bit(s.admitted, shared_array<int16_t>(p.layout.chosen)[thread * k]);
  sync_block();  // admitted

  if (warp_id() != 0) return;
  for (int count = count_set(s.admitted); count < k; ++count) {
    uint64_t most = 0;
    int expert = kMaxRouteExperts;  // none
    for (int e = lane_id(); e < num_experts; e += 32)
      if (!has_bit(s.admitted, e) && (expert == kMaxRouteExperts || votes[e] > most)) most = votes[e], expert = e;
    for (int bit = 16; bit > 0; bit /= 2) {
      const uint64_t other_most = shuffle_xor(kFullWarp, most, bit);
      const int other = shuffle_xor(kFullWarp, expert, bit);
      const bool better = other_most > most || (other_most == most && other < expert);
      if (other < kMaxRouteExperts && (expert == kMaxRouteExperts || better)) most = other_most, expert = other;
    }
    sync_warp();  // all have read admitted
    if (lane_id() == 0) set_bit(s.admitted, expert);
    sync_warp();  // admitted
  }
}

// oea: the first k0 choices of all rows, and one more of each while these are fewer than k experts. By one warp.
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

// The best admitted experts of row t, by one warp.
template <int kPerLane>
__device__ void assign(const RouteParams& p, int t) {
  Shared& s = shared_state();
  const int k = p.args.rule.top_k, num_experts = p.args.rule.num_experts, lane = lane_id();
  int expert = lane < k ? shared_array<int16_t>(p.layout.chosen)[t * k + lane] : 0;
  const uint32_t lost = ballot(kFullWarp, lane < k && !has_bit(s.admitted, expert));
  if (lost) {
    uint32_t key[kPerLane], unused;
    LYNX_UNROLL
    for (int i = 0; i < kPerLane; ++i) {
      const int e = i * 32 + lane;
      key[i] = e < num_experts && has_bit(s.admitted, e) ? to_key(p.args.scores[t * num_experts + e]) : 0;
    }
    pick_best(key, k, expert, unused);
    if (lane == 0) atomic_add(&s.remapped, uint32_t(count_bits(lost)));
  }
  if (lane < k) {
    shared_array<int16_t>(p.layout.assigned)[t * k + lane] = int16_t(expert);
    set_bit(s.used, expert);
  }
}

// Makes the assignment of row t its choice: the row's own mass, shared as the softmax of the original scores. By one warp.
__device__ void weigh(const RouteParams& p, int t) {
  const RouteArgs& a = p.args;
  const int k = a.rule.top_k, lane = lane_id(), pair = t * k + lane;
  int16_t* chosen = shared_array<int16_t>(p.layout.chosen);
  const int own = lane < k ? chosen[pair] : 0;
  const int expert = lane < k ? shared_array<int16_t>(p.layout.assigned)[pair] : 0;
  double retained = 1;
  if (ballot(kFullWarp, own != expert)) {
    const float* scores = a.scores + t * a.rule.num_experts;
    const float best = shuffle(kFullWarp, scores[expert], 0), own_best = shuffle(kFullWarp, scores[own], 0);
    const float weight = lane < k ? expf(scores[expert] - best) : 0;
    const double mass = warp_sum(weight, k);
    const double own_mass = warp_sum(lane < k ? expf(scores[own] - own_best) : 0, k);
    double row_weight = 1;
    if (!a.rule.norm_topk) row_weight = warp_sum(lane < k ? a.weights[pair] : 0, k);
    if (lane < k) {
      chosen[pair] = int16_t(expert);
      a.ids[pair] = expert;
      a.weights[pair] = float(row_weight * weight / mass);
    }
    retained = mass * exp(double(best) - own_best) / own_mass;
  }
  if (lane == 0) shared_array<double>(p.layout.retained)[t] = retained;
}

// Pairs ordered by expert, active experts, tiles. By the whole block.
template <int kPerLane>
__device__ void list_pairs(const RouteParams& p) {
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
  if (warp_id() == 0) list_experts<kPerLane>(a, p.tile_rows, count, tile);
  sync_block();  // count, tile
  visit_pairs(range, mine, expert_of, [&](int pair, int e, int before) {
    const int row = e >= 0 ? int(count[e]) + before : -1;
    a.row_of_pair[pair] = row;
    if (row >= 0) a.pair_of_row[row] = pair;
  });
  write_tiles(a, p.tile_rows, count, tile);
}

// kPerLane: experts per lane, a power of two >= E / 32.
template <int kPerLane>
__global__ void __launch_bounds__(1024, 1) route_kernel(const __grid_constant__ RouteParams p) {
  grid_wait();  // scores are there, and no earlier kernel reads the outputs any more
  grid_launch_dependents();
  Shared& s = shared_state();
  const RouteArgs& a = p.args;
  const int warps = int(blockDim.x) / 32, k = a.rule.top_k;
  int num_rows = *a.num_rows;
  num_rows = num_rows < 0 ? 0 : num_rows < a.max_rows ? num_rows : a.max_rows;
  initialise(p, num_rows);
  sync_block();  // Shared, histogram
  for (int t = warp_id(); t < a.max_rows; t += warps) route_own<kPerLane>(p, t, num_rows);
  sync_block();  // chosen, best, wanted

  const bool acted =
      a.selection.policy != Policy::kTopk && a.phase == Phase::kDecodeOnly && num_rows >= 2 && int(s.num_exact) < num_rows;
  if (warp_id() == warps - 1) {
    uint32_t word = 0;
    for (int j = 0; j < k; ++j) word |= lane_id() < kWords ? s.wanted[j][lane_id()] : 0;
    const int n = int(reduce_add(kFullWarp, uint32_t(count_bits(word))));
    if (lane_id() == 0) s.num_wanted = n;
  }
  bool guard_hit = false;
  if (acted) {
    if (a.selection.policy == Policy::kLynx) {
      admit_lynx(p, num_rows);
    } else if (warp_id() == 0) {
      admit_oea(p);
    }
    sync_block();  // admitted, num_wanted
    const int16_t* chosen = shared_array<int16_t>(p.layout.chosen);
    for (int pair = int(threadIdx.x); a.exact && pair < num_rows * k; pair += int(blockDim.x))
      if (a.exact[pair / k]) set_bit(s.admitted, chosen[pair]);
    sync_block();  // admitted
    for (int t = warp_id(); t < num_rows; t += warps) assign<kPerLane>(p, t);
    sync_block();  // assigned, used
    guard_hit = count_set(s.used) >= s.num_wanted;
    for (int t = warp_id(); t < num_rows && !guard_hit; t += warps) weigh(p, t);
  }
  sync_block();  // the final choice, retained, num_wanted
  list_pairs<kPerLane>(p);

  if (warp_id() != 0) return;
  const bool changed = acted && !guard_hit;
  double retained = 0;
  for (int t = lane_id(); t < num_rows; t += 32) retained += changed ? shared_array<double>(p.layout.retained)[t] : 1;
  retained = warp_sum(retained);
  const int active = count_set(s.used);
  if (lane_id() == 0) {
    SelectionStats stats;
    stats.rows = num_rows;
    stats.union_before = s.num_wanted;
    stats.active = changed ? active : s.num_wanted;
    stats.remapped_pairs = changed ? int(s.remapped) : 0;
    stats.retained_mass = retained;
    stats.acted = acted;
    stats.guard_hit = guard_hit;
    write_stats(a, stats, s.first_bad);
  }
}

}  // namespace

void route(const RouteArgs& args, Stream stream) {
  const int num_experts = args.rule.num_experts, k = args.rule.top_k;
  if (args.max_rows < 0 || args.max_rows > kMaxStepRows)
    invalid("route", "rows: expected 0..", kMaxStepRows, ", got ", args.max_rows);
  if (num_experts < 1 || num_experts > kMaxRouteExperts)
    invalid("route", "experts: expected 1..", kMaxRouteExperts, ", got ", num_experts);
  if (k < 1 || k > kMaxRouteTopK || k > num_experts)
    invalid("route", "experts per token: expected 1..", std::min(kMaxRouteTopK, num_experts), ", got ", k);
  const Selection& selection = args.selection;
  if (selection.policy == Policy::kOea && (selection.k0 < 1 || selection.k0 > k))
    invalid("selection", "k0: expected 1..", k, " (experts per token of this model), got ", selection.k0);
  if (selection.policy == Policy::kLynx && (selection.beta < 1 || selection.beta > kMaxBins))
    invalid("selection", "beta: expected 1..", kMaxBins, ", got ", selection.beta);
  if (args.max_rows > kMaxRouteRows) {
    if (selection.policy != Policy::kTopk && args.phase == Phase::kDecodeOnly)
      invalid("route", "rows of a decode step in which a policy acts: expected 0..", kMaxRouteRows, ", got ", args.max_rows);
    route_many(args, stream);
    return;
  }

  const int words = (num_experts + 31) / 32;
  const int threads = 32 * std::clamp(std::max(args.max_rows, words), 1, 32);
  RouteParams params{args, route_layout(args.max_rows, num_experts, k, threads), 0, 0, tile_rows(args.max_rows), 0};
  params.theta_fraction = uint64_t(std::ldexp(std::frexp(selection.theta, &params.theta_exponent), 53));
  // 1e-5 covers the roundings of the float product; outside this range of alpha they are not bounded so, and nothing is skipped.
  if (selection.alpha > 1e-30 && selection.alpha < 1e30) params.filter = float(selection.alpha * (1 - 1e-5));
  auto* kernel = words <= 2 ? route_kernel<2> : words <= 4 ? route_kernel<4> : words <= 8 ? route_kernel<8> : route_kernel<16>;
  launch(kernel, 1, threads, size_t(params.layout.bytes), stream, params);
}

}  // namespace lynx_rt::cuda
