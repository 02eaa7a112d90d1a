// softplus() of the gates of states.
#pragma once
#include <cmath>

namespace lynx_rt {

// ln(1 + e^x); x itself where float32 cannot tell them apart.
inline float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

}  // namespace lynx_rt
