// Dispatch on the CPU: a counting sort orders the pairs by expert. routing.h defines DispatchPlan.
#pragma once
#include <cstdint>

#include "routing/routing.h"
#include "routing/rule.h"

namespace lynx_rt {

// Fills `plan` from routing.ids [T, k], each -1 or in [0, E); T * k must fit int32.
void dispatch_pairs(const Routing& routing, int64_t num_rows, const RouterRule& rule, DispatchPlan& plan);

}  // namespace lynx_rt
