// The CPUs that this process may use: their cores, kinds of cores, and memory nodes.
#pragma once
#include <string>
#include <vector>

#include "base/cpu_calls.h"

namespace lynx_rt {

// A logical CPU. Those of one core (hyperthreads) share its units of arithmetic and its path to memory.
struct Cpu {
  int id = 0;
  int core = 0;  // lowest id of the CPUs of its core
  int kind = 0;  // index of CpuTopology::kinds
  int node = 0;  // of the memory that is nearest
  bool operator==(const Cpu&) const = default;
};

struct CpuTopology {
  std::vector<Cpu> cpus;           // by id, at least one
  std::vector<std::string> kinds;  // names of the kinds of cores, the fastest first as far as the system says: "cpu_core", "1024"
  double quota = 0;                // CPU time per wall-clock time that the control groups allow; 0 = no limit
  bool operator==(const CpuTopology&) const = default;

  // Threads that the quota allows, at least 1; INT_MAX without one. It is rounded down: one thread beyond it would stop all threads
  // for the rest of every period.
  int threads_by_quota() const;
  std::vector<int> nodes() const;  // of its CPUs, rising
  int num_cores(int kind) const;
};

// `root` is a prefix of /proc and /sys, for tests. Files that are missing (another system, a container) leave every CPU a core of its
// own, all of one kind, on node 0.
CpuTopology read_cpu_topology(const std::string& root = "", CpuCalls& calls = CpuCalls::system());

// Returns the CPUs that this process may use, capped by the quota of its control groups; at least 1.
int usable_cores(const std::string& root = "", CpuCalls& calls = CpuCalls::system());

// Returns the name of the CPU's model, "unknown CPU" where the system does not say.
std::string cpu_model(const std::string& root = "");

// Returns the numbers of a list like "0-3,8"; up to the first place that is not one.
std::vector<int> parse_cpu_list(const std::string& text);

}  // namespace lynx_rt
