// The part of route() for steps of more rows than one block takes, in which no policy acts: route_many.cu.
#pragma once
#include "backend/cuda/route.h"

namespace lynx_rt::cuda {

void route_many(const RouteArgs& args, Stream stream);  // as route() checked them

}  // namespace lynx_rt::cuda
