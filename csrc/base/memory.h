// How much memory this process may still take.
#pragma once
#include <cstdint>

namespace lynx_rt {

// Bytes: MemAvailable, capped by what the limits of the process's cgroups and RLIMIT_AS leave.
int64_t free_memory_bytes();

// Zero-filled pages, which take no memory before they are touched. Throws kOutOfMemory naming `what`.
void* allocate_pages(int64_t bytes, const char* what);
void release_pages(void* p, int64_t bytes) noexcept;  // p may be null

}  // namespace lynx_rt
