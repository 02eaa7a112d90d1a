// The part of route() for steps of more rows than one block takes, in which no policy acts: route_large.cu.
#pragma once
#include "backend/cuda/route/route.h"

namespace lynx_rt::cuda {

void route_large(const RouteArgs& args, Stream stream);  // as route() checked them

}  // namespace lynx_rt::cuda
