// The part of route() for rules whose keys are not the logits: route_keys.cu.
#pragma once
#include "backend/cuda/route/route.h"

namespace lynx_rt::cuda {

// Returns `args` with keys and gates. Where has_keys(args.rule), it queues the kernel that computes them.
RouteArgs make_keys(const RouteArgs& args, Stream stream);

}  // namespace lynx_rt::cuda
