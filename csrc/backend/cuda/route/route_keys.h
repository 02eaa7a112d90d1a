// The part of route() for rules whose keys are not the logits: route_keys.cu.
#pragma once
#include "backend/cuda/route/route.h"

namespace lynx_rt::cuda {

// `args` with keys and gates, which a launch of its own computes where has_keys(args.rule).
RouteArgs make_keys(const RouteArgs& args, Stream stream);

}  // namespace lynx_rt::cuda
