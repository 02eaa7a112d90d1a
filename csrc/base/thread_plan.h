// How many threads a pool has, on which CPUs they run, and where their memory lies.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/cpu_topology.h"

namespace lynx_rt {

// Measures cores, for plan_threads(). A call takes a few milliseconds. Virtual, so that tests can answer as other machines do.
class CoreMeter {
 public:
  virtual ~CoreMeter() = default;
  // Returns the rate of arithmetic of one CPU, in any unit; 0 = unknown.
  virtual double arithmetic(int cpu) = 0;
  // Returns the rate at which these CPUs together read memory, in any unit; 0 = unknown.
  virtual double reading(std::span<const int> cpus) = 0;
};

struct ThreadPlan {
  int num_threads = 1;
  double slowest = 1;                      // arithmetic of the slowest core that is used, in that of the fastest
  std::vector<std::vector<int>> groups{};  // sets of CPUs that threads are bound to, one per node; empty = threads are not bound
  std::vector<int> nodes{};  // nodes over which the threads spread the pages that they touch first; empty = they do not
  std::string reason{};      // of num_threads, for people

  // Returns the number of tasks of equal work into which a loop is split, so that waiting for the last one takes at most an eighth of
  // the loop: threads take tasks one by one, so a slow core takes fewer, but it may take its last when the others are done.
  int64_t balanced_tasks() const;
  // Returns the CPUs that a thread is bound to: thread 0, which is the caller's own, to none; the others to the groups in turn, by the
  // groups' sizes.
  std::span<const int> cpus_of(int thread) const;
};

// Chooses the threads of a pool whose work is arithmetic and reading.
//
// wanted > 0: that many. Else one per core, at most as many as the quota allows. Cores of a slower kind are used where their
// arithmetic is at least a third of the fastest kind's: slower ones would do little of the work, and others would wait for the last
// task that they took. Further CPUs of a core (hyperthreads) are used where the cores read memory a tenth faster with them. `meter` is
// asked only on machines that have such kinds or CPUs, and only where the quota lets them matter; what it cannot measure is used.
//
// Threads are bound where some kind of cores is not used, and on two or more nodes. They are bound to all CPUs of the cores in use of
// a node rather than to one, so that a CPU that another process keeps busy does not stop them. Pages are spread over the nodes since
// any thread may take any task: half of the reads are then remote, but all of the memory's controllers serve them.
ThreadPlan plan_threads(const CpuTopology& topology, int wanted, CoreMeter& meter);

// Returns the plan of pools whose threads copy: one thread per CPU, nothing measured.
ThreadPlan plan_copying();

// Errors with which the operating system answers the calls of a plan; 0 = none. try_plan() makes them in a thread that ends again.
struct PlanErrors {
  int bind = 0, interleave = 0;
};
PlanErrors try_plan(const ThreadPlan& plan, CpuCalls& calls = CpuCalls::system());

// Binds the calling thread, and makes it spread its pages, as the plan says for this number. Failures do no harm but to speed.
PlanErrors apply_plan(const ThreadPlan& plan, int thread, CpuCalls& calls);

}  // namespace lynx_rt
