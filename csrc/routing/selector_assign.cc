// Policies that choose experts row by row. z is a row's keys.
#include <algorithm>
#include <cmath>

#include "routing/selector_batch.h"

namespace lynx_rt {

void Selector::assign(const Batch& batch, const Routing& own) {
  const Selection& s = batch.selection;
  if (s.policy == Policy::kLynxLiteral) count_votes(batch, own);
  if (s.policy == Policy::kSere) map_to_primary(batch, own);
  if (s.policy == Policy::kAlias) std::copy_n(s.alias, batch.num_experts, target_.begin());
  if (s.policy == Policy::kCapacity) assign_capacity(batch, own);
  for (int64_t t = 0; t < batch.num_rows; ++t) {
    const int32_t* wanted = own.ids + t * batch.top_k;
    int32_t* ids = assigned_.data() + t * batch.top_k;
    if (batch.is_exact(t))
      std::copy_n(wanted, batch.top_k, ids);
    else
      assign_row(batch, t, wanted, ids);
    if (s.policy != Policy::kReplay && std::count(ids, ids + batch.top_k, -1) == batch.top_k) ids[0] = wanted[0];
  }
}

void Selector::assign_row(const Batch& batch, int64_t t, const int32_t* wanted, int32_t* ids) {
  const Selection& s = batch.selection;
  const int k = batch.top_k;
  const float* z = batch.keys_of(t);
  switch (s.policy) {
    case Policy::kLynxLiteral: return assign_literal(batch, t, wanted, ids);
    case Policy::kSere:
    case Policy::kAlias:
      for (int j = 0; j < k; ++j) {
        int32_t target = target_[size_t(wanted[j])];
        if (s.policy == Policy::kSere && z[target] == -INFINITY) target = wanted[j];
        ids[j] = std::find(ids, ids + j, target) == ids + j ? target : -1;
      }
      return;
    case Policy::kSkip: {
      const double limit = -std::log(s.ratio);
      int kept = 1;
      while (kept < k && double(z[wanted[0]]) - z[wanted[kept]] <= limit) ++kept;
      std::fill(std::copy_n(wanted, kept, ids), ids + k, -1);
      return;
    }
    case Policy::kTopJ: std::fill(std::copy_n(wanted, s.j, ids), ids + k, -1); return;
    case Policy::kDenyRank: {
      int32_t* end = std::copy(wanted + s.rank + 1, wanted + k, std::copy_n(wanted, s.rank, ids));
      int32_t next = -1;
      for (int e = 0; e < batch.num_experts; ++e)
        if (z[e] > -INFINITY && std::find(wanted, wanted + k, e) == wanted + k && (next < 0 || z[e] > z[next])) next = e;
      *end = next;
      return;
    }
    case Policy::kCapacity: return;                  // assign_capacity(), for all rows at once
    default: std::copy_n(s.replay + t * k, k, ids);  // kReplay
  }
}

// lynx_literal: takes the k best of the keys with the votes of other rows added. A row's groups have at least k experts, so there
// are always k.
void Selector::assign_literal(const Batch& batch, int64_t t, const int32_t* wanted, int32_t* ids) {
  const Selection& s = batch.selection;
  const float* z = batch.keys_of(t);
  const double best = z[wanted[0]];
  for (int e = 0; e < batch.num_experts; ++e) {
    const double position = s.alpha * (best - z[e]);
    const uint64_t own_vote = position < num_bins_ ? vote_value_[int(position)] : 0;
    const double others = double(votes_[size_t(e)] - own_vote) / double(vote_value_[0]);
    voted_[size_t(e)] = z[e] > -INFINITY ? float(z[e] + s.lambda * others) : -INFINITY;
  }
  pick_best(voted_.data(), {all_experts_.data(), size_t(batch.num_experts)}, batch.top_k, ids);
  if (confident_[size_t(t)] && std::find(ids, ids + batch.top_k, wanted[0]) == ids + batch.top_k)
    ids[batch.top_k - 1] = wanted[0];
  drop_refills(z, wanted, batch.top_k, -std::log(s.refill), ids);
}

// sere: sets target_; an expert that is primary, or to which no primary is similar enough, is its own target.
void Selector::map_to_primary(const Batch& batch, const Routing& own) {
  const Selection& s = batch.selection;
  std::fill_n(admitted_.begin(), batch.num_experts, 0);  // primary
  for (int64_t t = 0; t < batch.num_rows; ++t)
    for (int j = 0; j < (batch.is_exact(t) ? batch.top_k : s.primary); ++j) admitted_[size_t(own.ids[t * batch.top_k + j])] = 1;
  for (int u = 0; u < batch.num_experts; ++u) {
    const float* similarity = s.similarity + int64_t(u) * batch.num_experts;
    int best = -1;
    for (int v = 0; v < batch.num_experts; ++v)
      if (admitted_[size_t(v)] && (best < 0 || similarity[v] > similarity[best])) best = v;
    target_[size_t(u)] = admitted_[size_t(u)] || (s.rho > 0 && similarity[best] < s.rho) ? u : best;
  }
}

void Selector::assign_capacity(const Batch& batch, const Routing& own) {
  const int k = batch.top_k, num_experts = batch.num_experts;
  const double share = batch.selection.factor * double(batch.num_pairs()) / num_experts;
  const int32_t capacity = int32_t(std::max(1.0, std::ceil(std::min(share, double(batch.num_rows)))));  // share may underflow
  std::fill_n(load_.begin(), num_experts, 0);
  for (int64_t t = 0; t < batch.num_rows; ++t)
    for (int j = 0; j < k; ++j) {
      const int32_t e = own.ids[t * k + j];
      assigned_[size_t(t * k + j)] = batch.is_exact(t) ? e : -1;
      load_[size_t(e)] += batch.is_exact(t);
    }
  for (int j = 0; j < k; ++j)
    for (int64_t t = 0; t < batch.num_rows; ++t) {
      if (batch.is_exact(t)) continue;
      // Experts only fill up: an expert that refused the row before has no room now either. So the row's best expert that has
      // room, and that it does not have yet, is the best that it has not asked.
      const float* z = batch.keys_of(t);
      int32_t* ids = assigned_.data() + t * k;
      int best = -1;
      for (int e = 0; e < num_experts; ++e)
        if (load_[size_t(e)] < capacity && z[e] > (best < 0 ? -INFINITY : z[best]) && std::find(ids, ids + j, e) == ids + j)
          best = e;
      if (best >= 0) ++load_[size_t(best)];
      ids[j] = best;
    }
}

}  // namespace lynx_rt
