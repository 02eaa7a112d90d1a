#include "routing/dispatch.h"

#include <algorithm>

namespace lynx_rt {

void dispatch_pairs(const Routing& routing, int64_t num_rows, const RouterRule& rule, DispatchPlan& plan) {
  const int32_t num_pairs = int32_t(num_rows * rule.top_k);
  const int num_experts = rule.num_experts;
  int32_t* offsets = plan.offsets;

  std::fill_n(offsets, num_experts + 1, 0);
  for (int32_t pair = 0; pair < num_pairs; ++pair)
    if (routing.ids[pair] >= 0) ++offsets[routing.ids[pair] + 1];
  for (int e = 0; e < num_experts; ++e) offsets[e + 1] += offsets[e];

  // offsets[e] serves as the next free sorted position of expert e, so in the end it is where expert e + 1 begins.
  for (int32_t pair = 0; pair < num_pairs; ++pair) {
    const int32_t e = routing.ids[pair];
    const int32_t row = e < 0 ? -1 : offsets[e]++;
    plan.sorted_of_pair[pair] = row;
    if (row >= 0) plan.pair_of_sorted[row] = pair;
  }
  for (int e = num_experts; e > 0; --e) offsets[e] = offsets[e - 1];
  offsets[0] = 0;
}

}  // namespace lynx_rt
