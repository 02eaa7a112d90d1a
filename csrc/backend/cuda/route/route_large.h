// The part of route() for steps with more rows than one block takes, in which no policy acts.
#pragma once
#include "backend/cuda/route/route.h"

namespace lynx_rt::cuda {

void route_large(const RouteArgs& args, Stream stream);  // route() has checked the arguments

}  // namespace lynx_rt::cuda
