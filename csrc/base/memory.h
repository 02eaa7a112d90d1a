// How much memory this process may still take.
#pragma once
#include <cstdint>

namespace lynx_rt {

// MemAvailable, capped by what the cgroup's limit leaves; bytes.
int64_t free_memory_bytes();

}  // namespace lynx_rt
