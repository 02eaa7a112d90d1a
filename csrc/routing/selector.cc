#include "routing/selector.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/error.h"
#include "routing/router_keys.h"
#include "routing/selector_batch.h"

namespace lynx_rt {

namespace {

void check_scores(const float* scores, int64_t num_rows, int num_experts) {
  constexpr uint32_t kExponent = 0x7f800000;  // its bits are all ones in NaN and infinity only
  for (int64_t t = 0; t < num_rows; ++t) {
    const float* z = scores + t * num_experts;
    uint32_t bad = 0;
    for (int e = 0; e < num_experts; ++e) bad |= (std::bit_cast<uint32_t>(z[e]) & kExponent) == kExponent;
    if (!bad) continue;
    const int e = int(std::find_if(z, z + num_experts, [](float v) { return !std::isfinite(v); }) - z);
    throw RowError(t, ErrorCode::kInvalidArgument, "router scores",
                   str_cat("router scores: row ", t, ", expert ", e, ": expected a finite value, got ", double(z[e])));
  }
}

float best_gate(const float* gates, const int32_t* ids, int k) {
  float best = -INFINITY;
  for (int j = 0; j < k; ++j)
    if (ids[j] >= 0) best = std::max(best, gates[ids[j]]);
  return best;
}

// Phi-MoE: returns the softmax probability of the `best` logit among the experts near it, as in transformers' modeling_phimoe.py.
// It leaves out the experts that are farther away than 2 * jitter times the larger of |z| and the best, and expert `taken`.
double near_probability(const float* z, int num_experts, float best, int taken, float jitter) {
  double sum = 0;
  for (int e = 0; e < num_experts; ++e) {
    const bool far = (best - z[e]) / std::max(std::abs(z[e]), best) > 2 * jitter;  // 0 / 0, both logits 0: not far
    if (e != taken && !far) sum += std::exp(z[e] - best);
  }
  return 1 / sum;
}

}  // namespace

SelectionStats Selector::run(const float* scores, int64_t num_rows, const RouterRule& rule, const Selection& selection,
                             Phase phase, const uint8_t* exact, Routing& routing, const int32_t* groups, const uint8_t* cost) {
  check_selection(selection, rule.num_experts, rule.top_k);
  check_scores(scores, num_rows, rule.num_experts);
  Selection known = selection;
  if (!cost) known.resident = 0;
  if (groups && acts(known, phase, num_rows) && !is_per_row(known))
    return run_groups(scores, num_rows, rule, known, phase, exact, routing, groups, cost);
  return run_group(scores, num_rows, rule, known, phase, exact, routing, cost);
}

SelectionStats Selector::run_group(const float* scores, int64_t num_rows, const RouterRule& rule, const Selection& selection,
                                   Phase phase, const uint8_t* exact, Routing& routing, const uint8_t* cost) {
  reserve(num_rows, rule);
  if (has_keys(rule)) make_keys(scores, num_rows, rule);
  const Batch batch{has_keys(rule) ? keys_.data() : scores,
                    has_keys(rule) ? gates_.data() : scores,
                    num_rows,
                    rule.num_experts,
                    rule.top_k,
                    exact,
                    cost,
                    rule,
                    selection};

  route_own(batch, routing);
  SelectionStats stats;
  stats.rows = int32_t(num_rows);
  stats.union_before = stats.active = count_used(routing.ids, batch.num_pairs(), batch.num_experts);
  stats.retained_mass = double(num_rows);
  stats.misses_before = stats.misses = count_misses(cost, batch.num_experts);
  routing.num_active = list_used(batch.num_experts, routing.active);
  if (routing.wanted) list_wanted(batch, routing);

  const bool all_exact = exact && std::all_of(exact, exact + num_rows, [](uint8_t flag) { return flag != 0; });
  stats.acted = acts(selection, phase, num_rows) && !all_exact;
  if (!stats.acted) return stats;

  if (selection.resident > 0) {
    assign_resident(batch, routing);
  } else if (admits(selection.policy)) {
    admit(batch, routing);
    assign_admitted(batch, routing);
  } else {
    assign(batch, routing);
  }
  const int active = count_used(assigned_.data(), batch.num_pairs(), batch.num_experts);
  const int32_t misses = count_misses(cost, batch.num_experts);
  const bool fewer = selection.resident > 0 ? misses < stats.misses_before : active < stats.union_before;
  stats.guard_hit = has_guard(selection) && !fewer;
  if (stats.guard_hit) return stats;

  weigh(batch, routing, stats);
  routing.num_active = list_used(batch.num_experts, routing.active);
  stats.active = active;
  stats.misses = misses;
  return stats;
}

void Selector::list_wanted(const Batch& batch, Routing& own) {
  own.num_wanted = list_used(batch.num_experts, own.wanted);
  if (!own.wanted_mass) return;
  grow(wanted_place_, batch.num_experts);
  for (int32_t i = 0; i < own.num_wanted; ++i) wanted_place_[size_t(own.wanted[i])] = i;
  std::fill_n(own.wanted_mass, own.num_wanted, 0.f);
  for (int64_t p = 0; p < batch.num_pairs(); ++p)
    if (own.ids[p] >= 0) own.wanted_mass[wanted_place_[size_t(own.ids[p])]] += own.weights[p];
}

void Selector::reserve(int64_t num_rows, const RouterRule& rule) {
  const int num_experts = rule.num_experts;
  for (int e = int(all_experts_.size()); e < num_experts; ++e) all_experts_.push_back(e);
  if (has_keys(rule)) {
    grow(keys_, num_rows * num_experts);
    grow(gates_, num_rows * num_experts);
    grow(ungated_, num_experts);
    grow(choice_, num_experts);
    grow(group_score_, rule.num_groups);
    grow(open_, rule.num_groups);
  }
  grow(own_mass_, num_rows);
  grow(confident_, num_rows);
  grow(served_, num_rows);
  grow(serves_, num_experts);
  grow(votes_, num_experts);
  grow(masses_, num_experts);
  grow(admitted_, num_experts);
  admitted_list_.reserve(size_t(num_experts));
  grow(voted_, num_experts);
  grow(target_, num_experts);
  grow(load_, num_experts);
  grow(assigned_, num_rows * rule.top_k);
  grow(free_, rule.top_k);
  grow(used_, num_experts);
}

// Computes the model's own routing, for each row by itself.
void Selector::route_own(const Batch& batch, Routing& own) {
  const RouterRule& rule = batch.rule;
  const std::span<const int32_t> experts(all_experts_.data(), batch.num_experts);
  for (int64_t t = 0; t < batch.num_rows; ++t) {
    const float* gates = batch.gates_of(t);
    int32_t* ids = own.ids + t * batch.top_k;
    float* weights = own.weights + t * batch.top_k;
    pick_best(batch.keys_of(t), experts, batch.top_k, ids);
    const float best = best_gate(gates, ids, batch.top_k);

    double mass = 0;
    for (int j = 0; j < batch.top_k; ++j) {
      weights[j] = std::exp(gates[ids[j]] - best);
      mass += weights[j];
    }
    own_mass_[t] = mass;
    if (rule.kind == RouterKind::kSparsemixer) {
      for (int j = 0; j < 2; ++j)
        weights[j] = float(rule.scale * near_probability(gates, batch.num_experts, gates[ids[j]], j ? ids[0] : -1, rule.jitter));
      continue;
    }
    // A normalised weight is exp / (sum of exp over the chosen experts), so the rest of the row is not needed.
    double denominator = mass;
    if (!is_normalised(rule)) {
      double one = 0;  // a gate of 1 in units of the best gate
      if (rule.kind == RouterKind::kSigmoid)
        one = std::exp(-double(best));
      else
        for (int e = 0; e < batch.num_experts; ++e) one += std::exp(gates[e] - best);
      denominator = rule.norm_topk ? std::max(mass, rule.min_sum * one) : one;
    }
    for (int j = 0; j < batch.top_k; ++j) weights[j] = float(double(rule.scale) * weights[j] / denominator);
  }
}

// Copies the assignment into `routing`, which holds the own routing, and weighs it. Rows that kept their choice are not touched.
void Selector::weigh(const Batch& batch, Routing& routing, SelectionStats& stats) const {
  const int k = batch.top_k;
  stats.retained_mass = 0;
  for (int64_t t = 0; t < batch.num_rows; ++t) {
    const float* gates = batch.gates_of(t);
    const int32_t* assigned = assigned_.data() + t * k;
    int32_t* ids = routing.ids + t * k;
    float* weights = routing.weights + t * k;
    if (std::equal(ids, ids + k, assigned)) {
      stats.retained_mass += 1;
      continue;
    }
    ++stats.changed_rows;
    for (int j = 0; j < k; ++j) stats.remapped_pairs += std::find(assigned, assigned + k, ids[j]) == assigned + k;
    const float own_best = best_gate(gates, ids, k), best = best_gate(gates, assigned, k);
    double row_weight = batch.rule.scale;  // W0
    if (!is_normalised(batch.rule)) {
      row_weight = 0;
      for (int j = 0; j < k; ++j) row_weight += weights[j];
    }
    const bool moves = moves_weights(batch.selection.policy);
    if (moves) move_weights(batch, t, ids, weights);

    double mass = 0;  // relative to the best assigned expert, so that it cannot vanish
    for (int j = 0; j < k; ++j) {
      ids[j] = assigned[j];
      const float gate = ids[j] < 0 ? 0 : std::exp(gates[ids[j]] - best);
      mass += gate;
      if (!moves) weights[j] = gate;
    }
    if (mass == 0) continue;  // replay: a row without experts
    // The ratio is cut to 1: under a rule with a bias or groups, experts outside the own choice may have larger gates.
    const double retained = std::min(1.0, mass * std::exp(double(best) - own_best) / own_mass_[size_t(t)]);
    stats.retained_mass += retained;
    const double damp = has_refill(batch.selection.policy) ? batch.selection.damp : 0;
    if (damp > 0) row_weight *= std::pow(retained, damp);
    for (int j = 0; j < k && !moves; ++j) weights[j] = float(row_weight * weights[j] / mass);
  }
}

// Moves the weight of each own choice to the rank of the expert that it became.
void Selector::move_weights(const Batch& batch, int64_t t, const int32_t* own, float* weights) const {
  const int32_t* assigned = assigned_.data() + t * batch.top_k;
  for (int j = 0; j < batch.top_k; ++j) {
    if (assigned[j] >= 0) continue;  // the first rank of its expert has its own weight already
    const auto first = std::find(assigned, assigned + j, target_[size_t(own[j])]);
    weights[first - assigned] += weights[j];
    weights[j] = 0;
  }
}

// Marks in used_ the experts in `ids`; returns their number.
int Selector::count_used(const int32_t* ids, int64_t num_pairs, int num_experts) {
  std::fill_n(used_.begin(), num_experts, 0);
  for (int64_t pair = 0; pair < num_pairs; ++pair)
    if (ids[pair] >= 0) used_[ids[pair]] = 1;
  return int(std::count(used_.begin(), used_.begin() + num_experts, 1));
}

// Counts the experts marked in used_ that are not resident.
int32_t Selector::count_misses(const uint8_t* cost, int num_experts) const {
  int32_t misses = 0;
  for (int e = 0; cost && e < num_experts; ++e) misses += used_[size_t(e)] && cost[e] != 0;
  return misses;
}

// Lists the experts marked in used_, ascending; returns their number.
int32_t Selector::list_used(int num_experts, int32_t* experts) const {
  int32_t count = 0;
  for (int e = 0; e < num_experts; ++e)
    if (used_[e]) experts[count++] = e;
  return count;
}

}  // namespace lynx_rt
