#include "base/memory.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "base/cgroup.h"
#include "base/error.h"

namespace lynx_rt {

namespace {

// Returns the address space that RLIMIT_AS (ulimit -v) still allows; INT64_MAX = no limit.
int64_t address_space_left() {
  rlimit limit;
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return INT64_MAX;
  long long pages = 0;
  if (FILE* f = std::fopen("/proc/self/statm", "r")) {
    if (std::fscanf(f, "%lld", &pages) != 1) pages = 0;
    std::fclose(f);
  }
  return std::max<int64_t>(0, int64_t(limit.rlim_cur) - pages * sysconf(_SC_PAGESIZE));
}

}  // namespace

int64_t free_memory_bytes() {
  int64_t available = int64_t(4) << 30;
  if (FILE* f = std::fopen("/proc/meminfo", "r")) {
    char line[256];
    long long kb;
    while (std::fgets(line, sizeof line, f))
      if (std::sscanf(line, "MemAvailable: %lld kB", &kb) == 1) available = kb * 1024;
    std::fclose(f);
  }
  return std::min({available, cgroup_free_memory(), address_space_left()});
}

void* allocate_pages(int64_t bytes, const char* what) {
  void* p =
      mmap(nullptr, size_t(bytes > 0 ? bytes : 1), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) fail(ErrorCode::kOutOfMemory, what, what, ": cannot allocate ", bytes, " bytes");
  if (bytes >= (4 << 20)) madvise(p, size_t(bytes), MADV_HUGEPAGE);
  return p;
}

void release_pages(void* p, int64_t bytes) noexcept {
  if (p) munmap(p, size_t(bytes > 0 ? bytes : 1));
}

}  // namespace lynx_rt
