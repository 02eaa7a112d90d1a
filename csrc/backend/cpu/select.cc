#include "backend/cpu/select.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <span>

#include "backend/backend.h"
#include "base/error.h"

namespace lynx_rt {

struct Selector::Batch {
  const float* scores;  // [T, E]
  int64_t num_rows;     // T
  int num_experts;      // E
  int top_k;            // k
  bool norm_topk;
  const uint8_t* exact;  // [T] or null

  const float* row(int64_t t) const { return scores + t * num_experts; }
  int64_t num_pairs() const { return num_rows * top_k; }
  bool is_exact(int64_t t) const { return exact && exact[t]; }
};

namespace {

__extension__ using uint128 = unsigned __int128;

void check_scores(const float* scores, int64_t num_rows, int num_experts) {
  constexpr uint32_t kExponent = 0x7f800000;  // all ones in NaN and infinity, and only there
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

// The k best of `candidates` (ascending expert ids) by score, best first, ties to the lower expert. Returns how many there
// are: min(k, candidates). An insertion sort of the best k; most candidates fail the first comparison.
int pick_best(const float* scores, std::span<const int32_t> candidates, int k, int32_t* ids) {
  int n = 0;
  for (const int32_t e : candidates) {
    if (n == k && scores[e] <= scores[ids[k - 1]]) continue;
    int slot = n < k ? n++ : k - 1;
    for (; slot > 0 && scores[e] > scores[ids[slot - 1]]; --slot) ids[slot] = ids[slot - 1];
    ids[slot] = e;
  }
  return n;
}

// The least integer >= theta * top_vote, without rounding; UINT64_MAX where it is above all possible votes.
uint64_t votes_needed(double theta, uint64_t top_vote) {
  int exponent;
  const double fraction = std::frexp(theta, &exponent);  // theta = fraction * 2^exponent, fraction 0 or in [0.5, 1)
  if (exponent > 63) return UINT64_MAX;                  // theta >= 2^63; votes sum up to 2^62 at most
  // theta * top_vote = product * 2^-shift; product < 2^(53 + 62), shift >= -10.
  uint128 product = uint128(uint64_t(std::ldexp(fraction, 53))) * top_vote;
  const int shift = std::min(53 - exponent, 127);
  if (shift <= 0)
    product <<= -shift;
  else
    product = (product + ((uint128(1) << shift) - 1)) >> shift;
  return uint64_t(std::min(product, uint128(UINT64_MAX)));
}

template <class T>
void grow(std::vector<T>& v, int64_t size) {
  if (int64_t(v.size()) < size) v.resize(size);
}

}  // namespace

SelectionStats Selector::run(const float* scores, int64_t num_rows, const RouterRule& rule, const Selection& selection,
                             Phase phase, const uint8_t* exact, Routing& routing) {
  const Batch batch{scores, num_rows, rule.num_experts, rule.top_k, rule.norm_topk, exact};
  if (selection.policy == Policy::kOea && selection.k0 > rule.top_k)
    invalid("selection", "k0: expected 1..", rule.top_k, " (experts per token of this model), got ", selection.k0);
  check_scores(scores, num_rows, rule.num_experts);
  reserve(batch);

  route_own(batch, routing);
  SelectionStats stats;
  stats.rows = int32_t(num_rows);
  stats.union_before = stats.active = count_used(batch, routing.ids);
  stats.retained_mass = double(num_rows);
  list_used(batch, routing);

  const bool all_exact = exact && std::all_of(exact, exact + num_rows, [](uint8_t flag) { return flag != 0; });
  stats.acted = selection.policy != Policy::kTopk && phase == Phase::kDecodeOnly && num_rows >= 2 && !all_exact;
  if (!stats.acted) return stats;

  std::fill_n(admitted_.begin(), batch.num_experts, 0);
  if (selection.policy == Policy::kLynx)
    demand_lynx(batch, selection, routing);
  else
    demand_oea(batch, selection, routing);
  admit(batch, selection, routing);
  assign(batch, routing);

  const int active = count_used(batch, assigned_.data());
  stats.guard_hit = active >= stats.union_before;
  if (stats.guard_hit) return stats;

  weigh(batch, routing, stats);
  list_used(batch, routing);
  stats.active = active;
  return stats;
}

void Selector::reserve(const Batch& batch) {
  const int num_experts = batch.num_experts;
  for (int e = int(all_experts_.size()); e < num_experts; ++e) all_experts_.push_back(e);
  grow(own_mass_, batch.num_rows);
  grow(votes_, num_experts);
  grow(admitted_, num_experts);
  admitted_list_.reserve(num_experts);
  grow(assigned_, batch.num_pairs());
  grow(used_, num_experts);
}

// The model's own routing. Nothing here looks at more than one row.
void Selector::route_own(const Batch& batch, Routing& own) {
  const std::span<const int32_t> experts(all_experts_.data(), batch.num_experts);
  for (int64_t t = 0; t < batch.num_rows; ++t) {
    const float* z = batch.row(t);
    int32_t* ids = own.ids + t * batch.top_k;
    float* weights = own.weights + t * batch.top_k;
    pick_best(z, experts, batch.top_k, ids);
    const float best = z[ids[0]];

    double mass = 0;
    for (int j = 0; j < batch.top_k; ++j) {
      weights[j] = std::exp(z[ids[j]] - best);
      mass += weights[j];
    }
    // softmax / (sum of the chosen softmax) = exp / (sum of the chosen exp): the rest of the row is not needed.
    double denominator = mass;
    if (!batch.norm_topk) {
      denominator = 0;
      for (int e = 0; e < batch.num_experts; ++e) denominator += std::exp(z[e] - best);
    }
    for (int j = 0; j < batch.top_k; ++j) weights[j] = float(weights[j] / denominator);
    own_mass_[t] = mass;
  }
}

// Demand, lynx: every row votes for the experts near its best score; a row without a near second needs its first choice.
void Selector::demand_lynx(const Batch& batch, const Selection& selection, const Routing& own) {
  const uint64_t voters = uint64_t(batch.num_rows);
  int num_bins = 0;
  uint64_t power = 1;  // voters^num_bins, a bound on the sum of votes of one expert
  std::array<uint64_t, 64> value;
  while (num_bins < selection.beta && power <= (uint64_t{1} << 62) / voters) {
    power *= voters;
    ++num_bins;
  }
  top_vote_ = power / voters;
  for (int bin = 0; bin < num_bins; ++bin) value[bin] = (bin == 0 ? top_vote_ : value[bin - 1] / voters);

  std::fill_n(votes_.begin(), batch.num_experts, 0);
  for (int64_t t = 0; t < batch.num_rows; ++t) {
    const float* z = batch.row(t);
    const int32_t first = own.ids[t * batch.top_k];
    const double best = z[first];
    int num_in_bin_0 = 0;
    for (int e = 0; e < batch.num_experts; ++e) {
      const double position = selection.alpha * (best - z[e]);
      if (position >= num_bins) continue;
      const int bin = int(position);
      votes_[e] += value[bin];
      num_in_bin_0 += bin == 0;
    }
    if (num_in_bin_0 == 1) admitted_[first] = 1;
  }
}

// Demand, oea: every row needs its first k0 choices, and one more of each while that is fewer than k experts.
void Selector::demand_oea(const Batch& batch, const Selection& selection, const Routing& own) {
  int count = 0;
  for (int j = 0; j < batch.top_k && (j < selection.k0 || count < batch.top_k); ++j)
    for (int64_t t = 0; t < batch.num_rows; ++t) {
      uint8_t& admitted = admitted_[own.ids[t * batch.top_k + j]];
      count += !admitted;
      admitted = 1;
    }
}

// Admit: what rows need, what enough votes ask for, and the choices of exact rows.
void Selector::admit(const Batch& batch, const Selection& selection, const Routing& own) {
  if (selection.policy == Policy::kLynx) {
    const uint64_t needed = votes_needed(selection.theta, top_vote_);
    int count = 0;
    for (int e = 0; e < batch.num_experts; ++e) {
      if (votes_[e] >= needed) admitted_[e] = 1;
      count += admitted_[e];
    }
    for (; count < batch.top_k; ++count) {
      int best = -1;
      for (int e = 0; e < batch.num_experts; ++e)
        if (!admitted_[e] && (best < 0 || votes_[e] > votes_[best])) best = e;
      admitted_[best] = 1;
    }
  }
  // After the filling, so that an exact row only ever adds experts.
  for (int64_t t = 0; t < batch.num_rows; ++t)
    if (batch.is_exact(t))
      for (int j = 0; j < batch.top_k; ++j) admitted_[own.ids[t * batch.top_k + j]] = 1;

  admitted_list_.clear();
  for (int e = 0; e < batch.num_experts; ++e)
    if (admitted_[e]) admitted_list_.push_back(e);
}

// Assign: the best admitted experts of each row. Exact rows need no case of their own: all they want is admitted.
void Selector::assign(const Batch& batch, const Routing& own) {
  const int k = batch.top_k;
  for (int64_t t = 0; t < batch.num_rows; ++t) {
    const int32_t* wanted = own.ids + t * k;
    int32_t* ids = assigned_.data() + t * k;
    if (std::all_of(wanted, wanted + k, [this](int32_t e) { return admitted_[e] != 0; })) {
      std::copy_n(wanted, k, ids);
    } else {
      pick_best(batch.row(t), admitted_list_, k, ids);
    }
  }
}

// Weigh: moves the assignment into `routing`, which holds the own routing. Rows that kept their choice are not touched.
void Selector::weigh(const Batch& batch, Routing& routing, SelectionStats& stats) const {
  const int k = batch.top_k;
  stats.retained_mass = 0;
  for (int64_t t = 0; t < batch.num_rows; ++t) {
    const float* z = batch.row(t);
    const int32_t* assigned = assigned_.data() + t * k;
    int32_t* ids = routing.ids + t * k;
    float* weights = routing.weights + t * k;
    if (std::equal(ids, ids + k, assigned)) {
      stats.retained_mass += 1;
      continue;
    }
    double row_weight = 1;  // W0
    if (!batch.norm_topk) {
      row_weight = 0;
      for (int j = 0; j < k; ++j) row_weight += weights[j];
    }
    for (int j = 0; j < k; ++j) stats.remapped_pairs += !admitted_[ids[j]];
    const float own_best = z[ids[0]];
    const float best = z[assigned[0]];

    double mass = 0;  // relative to the best assigned expert, so that it cannot vanish
    for (int j = 0; j < k; ++j) {
      ids[j] = assigned[j];
      weights[j] = std::exp(z[ids[j]] - best);
      mass += weights[j];
    }
    for (int j = 0; j < k; ++j) weights[j] = float(row_weight * weights[j] / mass);
    stats.retained_mass += mass * std::exp(double(best) - own_best) / own_mass_[t];
  }
}

// Marks the experts that `ids` [T, k] names and returns how many they are.
int Selector::count_used(const Batch& batch, const int32_t* ids) {
  std::fill_n(used_.begin(), batch.num_experts, 0);
  for (int64_t pair = 0; pair < batch.num_pairs(); ++pair)
    if (ids[pair] >= 0) used_[ids[pair]] = 1;
  return int(std::count(used_.begin(), used_.begin() + batch.num_experts, 1));
}

void Selector::list_used(const Batch& batch, Routing& routing) const {
  routing.num_active = 0;
  for (int e = 0; e < batch.num_experts; ++e)
    if (used_[e]) routing.active[routing.num_active++] = e;
}

}  // namespace lynx_rt
