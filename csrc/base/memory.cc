#include "base/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>

#include "base/error.h"

namespace lynx_rt {

namespace {

int64_t read_number(const char* path) {
  FILE* f = std::fopen(path, "r");
  if (!f) return -1;
  long long v = -1;
  int n = std::fscanf(f, "%lld", &v);
  std::fclose(f);
  return n == 1 ? v : -1;
}

// Bytes of the cgroup that are cached files: counted as used, but given back when memory is short. A mapped model is such.
int64_t cgroup_file_cache() {
  int64_t sum = 0;
  if (FILE* f = std::fopen("/sys/fs/cgroup/memory.stat", "r")) {
    char line[256];
    long long v;
    while (std::fgets(line, sizeof line, f))
      if (std::sscanf(line, "inactive_file %lld", &v) == 1 || std::sscanf(line, "active_file %lld", &v) == 1) sum += v;
    std::fclose(f);
  }
  return sum;
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
  int64_t limit = read_number("/sys/fs/cgroup/memory.max"), used = read_number("/sys/fs/cgroup/memory.current");
  if (limit > 0 && used >= 0) available = std::min(available, std::max<int64_t>(0, limit - used + cgroup_file_cache()));
  return available;
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
