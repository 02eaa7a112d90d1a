#include "base/memory.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>
#if defined(__APPLE__)
#include <mach/mach.h>
#endif

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

constexpr int64_t kUnknown = int64_t(4) << 30;  // assumed where the system does not say

#if defined(__APPLE__)

int64_t available_memory() {
  vm_statistics64_data_t pages;
  mach_msg_type_number_t count = HOST_VM_INFO64_COUNT;
  if (host_statistics64(mach_host_self(), HOST_VM_INFO64, reinterpret_cast<host_info64_t>(&pages), &count) != KERN_SUCCESS)
    return kUnknown;
  return (int64_t(pages.free_count) + pages.inactive_count) * sysconf(_SC_PAGESIZE);
}

#else

int64_t available_memory() {
  int64_t available = kUnknown;
  if (FILE* f = std::fopen("/proc/meminfo", "r")) {
    char line[256];
    long long kb;
    while (std::fgets(line, sizeof line, f))
      if (std::sscanf(line, "MemAvailable: %lld kB", &kb) == 1) available = kb * 1024;
    std::fclose(f);
  }
  return available;
}

#endif

}  // namespace

int64_t free_memory_bytes() { return std::min({available_memory(), cgroup_free_memory(), address_space_left()}); }

void* allocate_pages(int64_t bytes, const char* what) {
  void* p =
      mmap(nullptr, size_t(bytes > 0 ? bytes : 1), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) fail(ErrorCode::kOutOfMemory, what, what, ": cannot allocate ", bytes, " bytes");
#if defined(MADV_HUGEPAGE)
  if (bytes >= (4 << 20)) madvise(p, size_t(bytes), MADV_HUGEPAGE);
#endif
  return p;
}

void release_pages(void* p, int64_t bytes) noexcept {
  if (p) munmap(p, size_t(bytes > 0 ? bytes : 1));
}

}  // namespace lynx_rt
