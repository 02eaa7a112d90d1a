// Policies that admit experts, and the votes of lynx and lynx_literal. z is a row's keys.
#include <algorithm>
#include <cmath>

#include "routing/gate_mass.h"
#include "routing/selector_batch.h"

namespace lynx_rt {

namespace {

__extension__ using uint128 = unsigned __int128;

// Returns the least integer >= theta * top_vote, computed exactly; UINT64_MAX where no sum of votes can reach it.
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

}  // namespace

// Counts the votes of every row for the experts near its best score.
void Selector::count_votes(const Batch& batch, const Routing& own) {
  const Selection& selection = batch.selection;
  const uint64_t voters = uint64_t(batch.num_rows);
  num_bins_ = 0;
  uint64_t power = 1;  // voters^num_bins, a bound on the sum of votes of one expert
  while (num_bins_ < selection.beta && power <= (uint64_t{1} << 62) / voters) {
    power *= voters;
    ++num_bins_;
  }
  for (int bin = 0; bin < num_bins_; ++bin) vote_value_[bin] = power /= voters;

  std::fill_n(votes_.begin(), batch.num_experts, 0);
  for (int64_t t = 0; t < batch.num_rows; ++t) {
    const float* z = batch.keys_of(t);
    const double best = z[own.ids[t * batch.top_k]];
    int num_in_bin_0 = 0;
    for (int e = 0; e < batch.num_experts; ++e) {
      const double position = selection.alpha * (best - z[e]);
      if (position >= num_bins_) continue;
      const int bin = int(position);
      votes_[size_t(e)] += vote_value_[bin];
      num_in_bin_0 += bin == 0;
    }
    confident_[size_t(t)] = num_in_bin_0 == 1;
  }
}

void Selector::admit(const Batch& batch, const Routing& own) {
  std::fill_n(admitted_.begin(), batch.num_experts, 0);
  switch (batch.selection.policy) {
    case Policy::kLynx:
      count_votes(batch, own);
      admit_lynx(batch, own);
      break;
    case Policy::kOea: admit_oea(batch, own); break;
    case Policy::kCover: admit_cover(batch, own); break;
    default: admit_by_gates(batch, own);
  }
  admit_exact_rows(batch, own);  // after the filling, so that they only add experts
}

void Selector::admit_exact_rows(const Batch& batch, const Routing& own) {
  for (int64_t t = 0; t < batch.num_rows; ++t)
    if (batch.is_exact(t))
      for (int j = 0; j < batch.top_k; ++j) admitted_[size_t(own.ids[t * batch.top_k + j])] = 1;
}

// lynx: admits experts with enough votes, and the first choices of rows that have no alternative.
void Selector::admit_lynx(const Batch& batch, const Routing& own) {
  const uint64_t needed = votes_needed(batch.selection.theta, vote_value_[0]);
  for (int e = 0; e < batch.num_experts; ++e) admitted_[size_t(e)] = votes_[size_t(e)] >= needed;
  for (int64_t t = 0; t < batch.num_rows; ++t)
    if (confident_[size_t(t)]) admitted_[size_t(own.ids[t * batch.top_k])] = 1;
  fill(batch, batch.top_k, nullptr);
}

// oea: admits the first k0 choices of every row, then one more choice of every row at a time until k experts are admitted.
void Selector::admit_oea(const Batch& batch, const Routing& own) {
  int count = 0;
  for (int j = 0; j < batch.top_k && (j < batch.selection.k0 || count < batch.top_k); ++j)
    for (int64_t t = 0; t < batch.num_rows; ++t) {
      uint8_t& admitted = admitted_[size_t(own.ids[t * batch.top_k + j])];
      count += !admitted;
      admitted = 1;
    }
}

// Sets votes_ to the sums of gates over all rows or, for des_vote, over the rows that chose the expert.
void Selector::sum_gates(const Batch& batch, const Routing& own) {
  const bool own_only = batch.selection.policy == Policy::kDesVote;
  std::fill_n(votes_.begin(), batch.num_experts, 0);
  for (int64_t t = 0; t < batch.num_rows; ++t) {
    const float* z = batch.keys_of(t);
    const int32_t* ids = own.ids + t * batch.top_k;
    const double best = z[ids[0]];
    uint64_t sum = 0;
    for (int e = 0; e < batch.num_experts; ++e) sum += masses_[size_t(e)] = exp_mass(best - z[e]);
    if (own_only) {
      for (int j = 0; j < batch.top_k; ++j) votes_[size_t(ids[j])] += gate_mass(masses_[size_t(ids[j])], sum);
    } else {
      for (int e = 0; e < batch.num_experts; ++e) votes_[size_t(e)] += gate_mass(masses_[size_t(e)], sum);
    }
  }
}

// xshare and des_vote: admits a budget of experts by their sums of gates.
void Selector::admit_by_gates(const Batch& batch, const Routing& own) {
  const bool own_only = batch.selection.policy == Policy::kDesVote;
  sum_gates(batch, own);
  for (int64_t t = 0; t < batch.num_rows && !own_only; ++t)
    for (int j = 0; j < batch.selection.k0; ++j) admitted_[size_t(own.ids[t * batch.top_k + j])] = 1;
  count_used(own.ids, batch.num_pairs(), batch.num_experts);  // used_: experts that some row chose
  fill(batch, std::max(budget_experts(batch.selection, batch.num_experts), batch.top_k), own_only ? used_.data() : nullptr);
}

// cover: admits a greedy cover of the rows by the experts that serve them.
void Selector::admit_cover(const Batch& batch, const Routing& own) {
  const double delta = batch.selection.delta;
  const auto serves = [&](int64_t t, int e) {
    const float* z = batch.keys_of(t);
    return double(z[own.ids[t * batch.top_k]]) - z[e] <= delta;
  };
  sum_gates(batch, own);
  std::fill_n(serves_.begin(), batch.num_experts, 0);
  std::fill_n(served_.begin(), batch.num_rows, 0);
  for (int64_t t = 0; t < batch.num_rows; ++t)
    for (int e = 0; e < batch.num_experts; ++e) serves_[size_t(e)] += serves(t, e);
  for (int64_t left = batch.num_rows; left > 0;) {
    int best = 0;
    for (int e = 1; e < batch.num_experts; ++e)
      if (serves_[size_t(e)] > serves_[size_t(best)] ||
          (serves_[size_t(e)] == serves_[size_t(best)] && votes_[size_t(e)] > votes_[size_t(best)]))
        best = e;
    admitted_[size_t(best)] = 1;
    for (int64_t t = 0; t < batch.num_rows; ++t) {
      if (served_[size_t(t)] || !serves(t, best)) continue;
      served_[size_t(t)] = 1;
      --left;
      for (int e = 0; e < batch.num_experts; ++e) serves_[size_t(e)] -= serves(t, e);
    }
  }
  fill(batch, std::max(budget_experts(batch.selection, batch.num_experts), batch.top_k), nullptr);
}

// Admits further experts with the most votes until there are `count`, only those that `allowed` marks (null: all); ties to the
// lower expert.
void Selector::fill(const Batch& batch, int count, const uint8_t* allowed) {
  for (int n = int(std::count(admitted_.begin(), admitted_.begin() + batch.num_experts, 1)); n < count; ++n) {
    int best = -1;
    for (int e = 0; e < batch.num_experts; ++e)
      if (!admitted_[size_t(e)] && (!allowed || allowed[e]) && (best < 0 || votes_[size_t(e)] > votes_[size_t(best)])) best = e;
    if (best < 0) return;
    admitted_[size_t(best)] = 1;
  }
}

void Selector::list_admitted(int num_experts) {
  admitted_list_.clear();
  for (int e = 0; e < num_experts; ++e)
    if (admitted_[size_t(e)]) admitted_list_.push_back(e);
}

// Assigns its best admitted experts to each row. Exact rows need no special case, since all their choices are admitted.
void Selector::assign_admitted(const Batch& batch, const Routing& own) {
  const int k = batch.top_k;
  const double limit = -std::log(batch.selection.refill);
  list_admitted(batch.num_experts);
  for (int64_t t = 0; t < batch.num_rows; ++t) {
    const int32_t* wanted = own.ids + t * k;
    int32_t* ids = assigned_.data() + t * k;
    if (std::all_of(wanted, wanted + k, [this](int32_t e) { return admitted_[size_t(e)] != 0; })) {
      std::copy_n(wanted, k, ids);
    } else {
      const float* z = batch.keys_of(t);
      pick_best(z, admitted_list_, k, ids);
      drop_outside(z, wanted[0], k, ids);
      drop_refills(z, wanted, k, limit, ids);
    }
  }
}

}  // namespace lynx_rt
