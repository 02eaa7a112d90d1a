// Free memory, and allocation of pages.
#pragma once
#include <cstdint>

namespace lynx_rt {

// Returns MemAvailable (macOS: free and inactive pages) in bytes, capped by what the process's cgroups and RLIMIT_AS still allow.
int64_t free_memory_bytes();

// Allocates zero-filled pages, which take no memory before they are touched. Throws kOutOfMemory naming `what`.
void* allocate_pages(int64_t bytes, const char* what);
void release_pages(void* p, int64_t bytes) noexcept;  // p may be null

}  // namespace lynx_rt
