// Selection in a batch of several isolation groups: one run for each of them.
#include <algorithm>
#include <utility>

#include "routing/selector_batch.h"

namespace lynx_rt {

// The rows of a group are copied together, so that the run sees nothing of the others and its result has the same bits as that of a
// call with these rows alone.
SelectionStats Selector::run_groups(const float* scores, int64_t num_rows, const RouterRule& rule, const Selection& selection,
                                    Phase phase, const uint8_t* exact, Routing& routing, const int32_t* groups,
                                    const uint8_t* cost) {
  const int64_t num_experts = rule.num_experts, k = rule.top_k;
  // The own routing of all rows.
  SelectionStats stats = run_group(scores, num_rows, rule, Selection{}, phase, exact, routing, cost);
  grow(group_order_, num_rows);
  grow(group_scores_, num_rows * num_experts);
  grow(group_exact_, num_rows);
  grow(group_ids_, num_rows * k);
  grow(group_weights_, num_rows * k);
  grow(group_active_, num_experts);
  for (int64_t t = 0; t < num_rows; ++t) group_order_[size_t(t)] = t;
  std::sort(group_order_.begin(), group_order_.begin() + num_rows,
            [groups](int64_t a, int64_t b) { return std::pair(groups[a], a) < std::pair(groups[b], b); });

  bool kept = false;  // some group's selection was kept
  for (int64_t begin = 0, end = 0; begin < num_rows; begin = end) {
    const int32_t group = groups[group_order_[size_t(begin)]];
    while (end < num_rows && groups[group_order_[size_t(end)]] == group) ++end;
    const int64_t count = end - begin;
    if (!acts(selection, phase, count)) continue;
    const int64_t* rows = group_order_.data() + begin;
    for (int64_t i = 0; i < count; ++i) {
      std::copy_n(scores + rows[i] * num_experts, num_experts, group_scores_.data() + i * num_experts);
      group_exact_[size_t(i)] = exact && exact[rows[i]];
    }
    Routing own{group_ids_.data(), group_weights_.data(), group_active_.data(), 0};
    const SelectionStats of_group =
        run_group(group_scores_.data(), count, rule, selection, phase, group_exact_.data(), own, cost);
    stats.acted |= of_group.acted;
    if (!of_group.acted || of_group.guard_hit) continue;
    kept = true;
    stats.remapped_pairs += of_group.remapped_pairs;
    stats.changed_rows += of_group.changed_rows;
    stats.retained_mass += of_group.retained_mass - double(count);
    for (int64_t i = 0; i < count; ++i) {
      std::copy_n(own.ids + i * k, k, routing.ids + rows[i] * k);
      std::copy_n(own.weights + i * k, k, routing.weights + rows[i] * k);
    }
  }
  stats.guard_hit = stats.acted && !kept && has_guard(selection);
  stats.active = count_used(routing.ids, num_rows * k, rule.num_experts);
  stats.misses = count_misses(cost, rule.num_experts);
  routing.num_active = list_used(rule.num_experts, routing.active);
  return stats;
}

}  // namespace lynx_rt
