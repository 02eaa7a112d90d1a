// The precision that an absent expert needs, where copies of all experts in low precision are in memory.
#pragma once
#include <cstdint>
#include <vector>

#include "routing/routing.h"

namespace lynx_rt {

// A choice of a row is the less important, the more weight the choices before it have: its unimportance is the sum of their weights over
// that of all of the row's weights, 0 for the first one. An absent expert (cost 1) is needed in full precision where the unimportance of some
// row's choice of it is at most `full`, and is then computed in full for all rows. Of the other absent experts, choices of an unimportance
// above `skip` are dropped: their ids become -1 and their weights 0, and the weights of the row's other choices stay. The first choice of
// a row always stays. Shared by the rows of a step, so that results depend on them. Source: arXiv 2411.01433 (HOBBIT), whose thresholds are
// 0.6 and 0.9; of one token at a time.
//   cost [E] in; routing in and out: ids and weights [num_rows, top_k], active; needed out: absent experts that are needed in full, rising
// Returns whether it dropped a choice, after which a dispatch plan is out of date. Test: tests/cpp/test_miss_rule.cc.
bool apply_miss_rule(double full, double skip, const uint8_t* cost, int64_t num_experts, int64_t num_rows, int64_t top_k,
                     Routing& routing, std::vector<int32_t>& needed);

}  // namespace lynx_rt
