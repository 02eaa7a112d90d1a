// The threads of the CPU backend: planned by what is measured of this machine's cores.
#pragma once
#include "base/thread_plan.h"

namespace lynx_rt {

// Returns plan_threads() for this process. What is measured is kept, for as long as the process may use the same CPUs.
// Thread-safety: safe from any thread.
ThreadPlan plan_computing(int wanted);

// Measures with the backend's own kernels, in threads bound to the CPUs in question. Both calls return 0 where threads cannot be
// bound; reading() also on CPUs other than x86, where a program cannot take data out of the caches.
class KernelMeter final : public CoreMeter {
 public:
  double arithmetic(int cpu) override;                 // products that stay in the second-level cache, about 4 ms
  double reading(std::span<const int> cpus) override;  // of 4 MiB and more out of memory, a few times
};

}  // namespace lynx_rt
