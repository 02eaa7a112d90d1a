// Calls to the operating system about CPUs of threads and memory of nodes. Off Linux, all of them fail with ENOSYS.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace lynx_rt {

// Virtual, so that tests can record the calls and answer as other machines do. Thread-safety: safe from any thread.
class CpuCalls {
 public:
  virtual ~CpuCalls() = default;
  // Writes which CPUs the calling thread may use, bit by bit. Returns 0 or the error: EINVAL where the kernel has more CPUs than
  // the mask has bits.
  virtual int get_affinity(std::span<uint64_t> mask);
  // Binds the calling thread to these CPUs. Returns 0 or the error.
  virtual int bind_thread(std::span<const int> cpus);
  // Spreads the pages that the calling thread touches first evenly over these nodes. Pages of a file count when they are read from
  // the disk. Returns 0 or the error: EPERM where a container forbids it.
  virtual int interleave(std::span<const int> nodes);

  static CpuCalls& system();
};

// Returns the CPUs of the machine, at least 1, for systems that have no affinity masks. macOS: those of its fast cores, since
// threads cannot be kept away from the others there.
int count_cpus();

// Returns the name of the CPU's model as a call has it (macOS); empty where none does.
std::string model_by_call();

// Returns a mask with these bits set.
std::vector<uint64_t> bit_mask(std::span<const int> bits);

}  // namespace lynx_rt
