// Dispatch on the CPU: a counting sort of the pairs by expert. The contract is Backend::dispatch() in backend.h.
#pragma once
#include <cstdint>

#include "routing/routing.h"
#include "routing/rule.h"

namespace lynx_rt {

// Needs no scratch. Every id is -1 or in [0, E), and T * k fits int32.
void dispatch_pairs(const Routing& routing, int64_t num_rows, const RouterRule& rule, DispatchPlan& plan);

}  // namespace lynx_rt
