// The clock of all durations and arrival times.
#pragma once
#include <chrono>

namespace lynx_rt {

// Returns seconds since some moment before the start of the process; never goes back.
inline double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace lynx_rt
