#include "base/cpu_calls.h"

#include <algorithm>
#include <cerrno>
#include <thread>
#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace lynx_rt {

CpuCalls& CpuCalls::system() {
  static CpuCalls calls;
  return calls;
}

std::vector<uint64_t> bit_mask(std::span<const int> bits) {
  std::vector<uint64_t> mask;
  for (const int bit : bits) {
    if (size_t(bit) / 64 >= mask.size()) mask.resize(size_t(bit) / 64 + 1);
    mask[size_t(bit) / 64] |= uint64_t(1) << bit % 64;
  }
  return mask;
}

int count_cpus() {
#if defined(__APPLE__)
  int32_t fast = 0;
  size_t size = sizeof fast;
  if (sysctlbyname("hw.perflevel0.logicalcpu", &fast, &size, nullptr, 0) == 0 && fast > 0) return fast;
#endif
  return std::max(1, int(std::thread::hardware_concurrency()));
}

std::string model_by_call() {
#if defined(__APPLE__)
  char name[256] = {};
  size_t size = sizeof name - 1;
  if (sysctlbyname("machdep.cpu.brand_string", name, &size, nullptr, 0) == 0) return name;
#endif
  return "";
}

#if defined(__linux__)

// The kernel's masks are arrays of unsigned long, here of 64 bits, and as long as the caller says: cpu_set_t ends at 1024 CPUs.

int CpuCalls::get_affinity(std::span<uint64_t> mask) {
  return sched_getaffinity(0, mask.size_bytes(), reinterpret_cast<cpu_set_t*>(mask.data())) == 0 ? 0 : errno;
}

int CpuCalls::bind_thread(std::span<const int> cpus) {
  const std::vector<uint64_t> mask = bit_mask(cpus);
  return sched_setaffinity(0, mask.size() * sizeof mask[0], reinterpret_cast<const cpu_set_t*>(mask.data())) == 0 ? 0 : errno;
}

int CpuCalls::interleave(std::span<const int> nodes) {
  constexpr int kInterleave = 3;  // MPOL_INTERLEAVE of linux/mempolicy.h
  const std::vector<uint64_t> mask = bit_mask(nodes);
  // The kernel reads one bit less than it is told (set_mempolicy(2), BUGS in get_nodes()).
  return syscall(SYS_set_mempolicy, kInterleave, mask.data(), mask.size() * 64 + 1) == 0 ? 0 : errno;
}

#else

int CpuCalls::get_affinity(std::span<uint64_t>) { return ENOSYS; }
int CpuCalls::bind_thread(std::span<const int>) { return ENOSYS; }
int CpuCalls::interleave(std::span<const int>) { return ENOSYS; }

#endif

}  // namespace lynx_rt
