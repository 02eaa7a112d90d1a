// Keys and gates of rules whose keys are not the logits. routing/router_keys.h defines them; routing/selector_keys.cc computes the
// same bits on the CPU.
//
// Work split. A warp has a row: lane l has experts l, l + 32, .. and, after them, groups l, l + 32, ..; sums over lanes are a
// butterfly. Some 60 operations in double precision per expert: at T = 16, E = 256 about 1 us where double precision runs at half
// speed and 30 us where it runs at 1/64 (estimates).
// Memory traffic: 4 T E bytes read, 4 T E written; 8 T E written for sigmoids with bias or groups.
// A row with a non-finite score is left to the kernels after this one, which report it: the score is passed on as NaN, because -inf
// is a valid key.
#include "backend/cuda/route/route_keys.h"

#include "backend/cuda/route/route_own.cuh"
#include "backend/cuda/runtime/launch.h"
#include "backend/cuda/runtime/ptx.cuh"
#include "base/error.h"
#include "routing/router_keys.h"

namespace lynx_rt::cuda {

using namespace route_state;

namespace {

constexpr int kWarps = 4;

struct KeysParams {
  const float* scores;
  const int32_t* num_rows;
  float* keys;
  float* gates;  // null where gates are the scores or the keys
  int max_rows;
  RouterRule rule;
};

// Marks the best groups of a row in open[group]. By one warp, after a barrier that makes c[E] visible.
__device__ void open_groups(const RouterRule& rule, const double* c, double* group_score, uint8_t* open) {
  const int group_size = rule.num_experts / rule.num_groups;
  for (int g = lane_id(); g < rule.num_groups; g += 32) {
    GroupScore score;
    for (int e = g * group_size; e < (g + 1) * group_size; ++e) score.add(c[e]);
    group_score[g] = score.value(rule.group_top2);
  }
  sync_warp();  // group_score
  for (int g = lane_id(); g < rule.num_groups; g += 32) {
    int before = 0;
    for (int other = 0; other < rule.num_groups; ++other)
      before += group_score[other] > group_score[g] || (group_score[other] == group_score[g] && other < g);
    open[g] = before < rule.top_groups;
  }
  sync_warp();  // open
}

// Gives all lanes the largest of their values and the lowest expert that has it. A lane without an expert passes one above all others.
__device__ void largest_of_warp(double& value, int& expert) {
  for (int bit = 16; bit > 0; bit /= 2) {
    const double other_value = shuffle_xor(kFullWarp, value, bit);
    const int other = shuffle_xor(kFullWarp, expert, bit);
    if (other_value > value || (other_value == value && other < expert)) value = other_value, expert = other;
  }
}

__global__ void __launch_bounds__(kWarps * 32) keys_kernel(const __grid_constant__ KeysParams p) {
  grid_wait();  // scores are complete, and no earlier kernel still reads the keys
  grid_launch_dependents();
  const RouterRule& rule = p.rule;
  const int num_experts = rule.num_experts, lane = lane_id(), t = int(blockIdx.x) * kWarps + warp_id();
  if (t >= p.max_rows || t >= *p.num_rows) return;
  const float* scores = p.scores + t * num_experts;
  float *keys = p.keys + t * num_experts, *gates = p.gates ? p.gates + t * num_experts : nullptr;
  const bool sigmoids = rule.kind == RouterKind::kSigmoid;
  const auto is_bad = [](float z) { return (float_bits(z) & 0x7f800000u) == 0x7f800000u; };
  const auto gate_of = [sigmoids](float z) { return sigmoids ? float(log_sigmoid(z)) : z; };

  bool bad = false;
  for (int e = lane; e < num_experts; e += 32) bad |= is_bad(scores[e]);
  if (ballot(kFullWarp, bad)) {
    for (int e = lane; e < num_experts; e += 32) {
      keys[e] = is_bad(scores[e]) ? bits_float(0x7fc00000u) : scores[e];
      if (gates) gates[e] = keys[e];
    }
    return;
  }
  if (!rule.bias && rule.num_groups == 1) {
    for (int e = lane; e < num_experts; e += 32) keys[e] = gate_of(scores[e]);
    return;
  }

  // The warp's arrays: weights without and with the bias, scores of the groups, which groups are open.
  double* a = shared_array<double>(0) + warp_id() * 3 * num_experts;
  double *c = a + num_experts, *group_score = c + num_experts;
  uint8_t* open = shared_array<uint8_t>(kWarps * 3 * num_experts * int(sizeof(double))) + warp_id() * num_experts;
  if (sigmoids) {
    for (int e = lane; e < num_experts; e += 32) a[e] = sigmoid(scores[e]);
  } else {
    uint32_t best_key = 0;
    for (int e = lane; e < num_experts; e += 32) best_key = best_key > to_key(scores[e]) ? best_key : to_key(scores[e]);
    const double best = from_key(reduce_max(kFullWarp, best_key));
    double sum = 0;
    for (int e = lane; e < num_experts; e += 32) sum += a[e] = exp_negative(best - scores[e]);
    sum = warp_sum(sum);
    for (int e = lane; e < num_experts; e += 32) a[e] /= sum;
  }
  for (int e = lane; e < num_experts; e += 32) c[e] = rule.bias ? a[e] + double(rule.bias[e]) : a[e];
  sync_warp();  // a, c
  open_groups(rule, c, group_score, open);

  const int group_size = num_experts / rule.num_groups;
  double most = -1e300;
  int first = num_experts;
  for (int e = lane; e < num_experts; e += 32)
    if (open[e / group_size] && (first == num_experts || c[e] > most)) most = c[e], first = e;
  largest_of_warp(most, first);
  for (int e = lane; e < num_experts; e += 32) {
    const float gate = gate_of(scores[e]);
    if (gates) gates[e] = gate;
    keys[e] = !open[e / group_size] ? -INFINITY : rule.bias ? choice_key(most - c[e], a[first]) : gate;
  }
}

}  // namespace

RouteArgs make_keys(const RouteArgs& given, Stream stream) {
  RouteArgs args = given;
  const RouterRule& rule = args.rule;
  args.keys = args.gates = args.scores;
  if (!has_keys(rule) || args.max_rows == 0) return args;
  if (!args.scratch) fail(ErrorCode::kInternal, "route", "route: keys need scratch memory");
  const bool ranked = rule.bias || rule.num_groups > 1;  // keys differ from gates
  float* gates = nullptr;
  if (rule.kind == RouterKind::kSigmoid && ranked) gates = args.scratch + int64_t(args.max_rows) * rule.num_experts;
  const KeysParams params{args.scores, args.num_rows, args.scratch, gates, args.max_rows, rule};
  const size_t shared = ranked ? kWarps * size_t(rule.num_experts) * (3 * sizeof(double) + 1) : 0;
  launch(keys_kernel, unsigned(ceil_div(args.max_rows, kWarps)), kWarps * 32, shared, stream, params);
  args.keys = args.scratch;
  if (gates || !ranked) args.gates = gates ? gates : args.keys;
  return args;
}

}  // namespace lynx_rt::cuda
