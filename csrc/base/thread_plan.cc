#include "base/thread_plan.h"

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdio>
#include <map>
#include <thread>

#include "base/error.h"

namespace lynx_rt {

namespace {

constexpr double kSlowest = 1.0 / 3;  // arithmetic of a core that is worth a thread, in that of the fastest
constexpr double kSiblingsAdd = 1.1;  // what the further CPUs of cores must multiply the rate of reading by
constexpr int kMeasured = 3;          // times that reading is measured
constexpr int kTried = 2;             // cores of a kind that are measured; the faster counts, since the other may be busy

std::string percent(double share) {
  char text[32];
  std::snprintf(text, sizeof text, "%.0f %%", 100 * share);
  return text;
}

// The first CPU of each core of a kind.
std::vector<int> first_cpus(const CpuTopology& topology, int kind) {
  std::map<int, int> by_core;
  for (const Cpu& cpu : topology.cpus)
    if (cpu.kind == kind) by_core.try_emplace(cpu.core, cpu.id);
  std::vector<int> out;
  for (const auto& [core, id] : by_core) out.push_back(id);
  return out;
}

double arithmetic_of(const std::vector<int>& cpus, CoreMeter& meter) {
  double best = 0;
  for (int i = 0; i < std::min(kTried, int(cpus.size())); ++i)
    best = std::max(best, meter.arithmetic(i == 0 ? cpus.front() : cpus.back()));
  return best;
}

// The kinds in use, and the CPUs of their cores.
struct Chosen {
  std::vector<bool> kinds;
  std::vector<int> cores;  // the first CPU of each
  double slowest = 1;
  std::string reason;
};

// Takes kinds of cores in falling speed until there are `limit` cores. `all`: slow kinds as well.
Chosen choose_kinds(const CpuTopology& topology, int limit, bool all, CoreMeter& meter) {
  Chosen chosen;
  chosen.kinds.resize(topology.kinds.size());
  double fastest = 0;
  for (int kind = 0; kind < int(topology.kinds.size()); ++kind) {
    const std::vector<int> cores = first_cpus(topology, kind);
    if (kind > 0) {
      if (int(chosen.cores.size()) >= limit) break;
      if (kind == 1) fastest = arithmetic_of(chosen.cores, meter);
      const double rate = arithmetic_of(cores, meter);
      const bool known = fastest > 0 && rate > 0;  // what cannot be measured is used
      const double share = known ? std::min(1.0, rate / fastest) : kSlowest;
      const bool used = all || share >= kSlowest;
      chosen.reason += str_cat("; ", cores.size(), " cores of kind ", topology.kinds[size_t(kind)], used ? " used" : " not used",
                               ": ", known ? percent(share) : "an unknown share", " of the fastest's arithmetic");
      if (!used) continue;
      chosen.slowest = std::min(chosen.slowest, std::max(share, kSlowest));
    }
    chosen.kinds[size_t(kind)] = true;
    chosen.cores.insert(chosen.cores.end(), cores.begin(), cores.end());
  }
  return chosen;
}

// Returns whether the further CPUs of the chosen cores are worth a thread, and adds why. A thread too many costs little, one too few
// up to half of the speed where a machine is one core. So what cannot be measured is used, and one good measurement of several is
// enough: another process that runs meanwhile can only make it worse.
bool siblings_help(const std::vector<int>& cores, const std::vector<int>& cpus, CoreMeter& meter, std::string& reason) {
  double alone = 0, together = 0;
  for (int i = 0; i < kMeasured; ++i) {
    alone = std::max(alone, meter.reading(cores));
    together = std::max(together, meter.reading(cpus));
    if (alone <= 0 || together <= 0) {
      reason += "; reading with and without hyperthreads cannot be measured";
      return true;
    }
    if (together >= kSiblingsAdd * alone) break;
  }
  const bool help = together >= kSiblingsAdd * alone;
  reason += str_cat("; hyperthreads ", help ? "used" : "not used", ": with them, the cores read ", percent(together / alone),
                    " of what they read without");
  return help;
}

}  // namespace

int64_t ThreadPlan::balanced_tasks() const { return int64_t(std::ceil(8 * num_threads / slowest)); }

std::span<const int> ThreadPlan::cpus_of(int thread) const {
  if (thread == 0) return {};
  size_t total = 0;
  for (const auto& group : groups) total += group.size();
  double place = (thread + 0.5) / num_threads * double(total);
  for (const auto& group : groups) {
    if (place < double(group.size())) return group;
    place -= double(group.size());
  }
  return {};
}

ThreadPlan plan_threads(const CpuTopology& topology, int wanted, CoreMeter& meter) {
  const int limit = wanted > 0 ? wanted : topology.threads_by_quota();
  Chosen chosen = choose_kinds(topology, limit, wanted > 0, meter);
  std::map<int, std::vector<int>> by_node;
  std::vector<int> cpus;
  for (const Cpu& cpu : topology.cpus) {
    if (!chosen.kinds[size_t(cpu.kind)] && wanted == 0) continue;
    by_node[cpu.node].push_back(cpu.id);
    cpus.push_back(cpu.id);
  }
  ThreadPlan plan;
  plan.slowest = chosen.slowest;
  if (wanted > 0) {
    plan.num_threads = wanted;
    plan.reason = "as many as asked for" + chosen.reason;
  } else {
    size_t count = chosen.cores.size();
    std::string hyperthreads;
    if (cpus.size() > count && int(count) < limit && siblings_help(chosen.cores, cpus, meter, hyperthreads)) count = cpus.size();
    plan.num_threads = std::min(int(count), limit);
    plan.reason = int(count) > limit ? str_cat("the CPU quota of ", topology.quota, ", rounded down")
                                     : str_cat("one per ", count > chosen.cores.size() ? "CPU" : "core");
    plan.reason += chosen.reason + hyperthreads;
  }
  // A pool without threads of its own has nothing to bind.
  if (plan.num_threads == 1 || (by_node.size() == 1 && cpus.size() == topology.cpus.size())) return plan;
  for (auto& [node, own] : by_node) {
    if (by_node.size() > 1) plan.nodes.push_back(node);
    plan.groups.push_back(std::move(own));
  }
  return plan;
}

namespace {
class NoMeter final : public CoreMeter {
 public:
  double arithmetic(int) override { return 0; }
  double reading(std::span<const int>) override { return 0; }
};
}  // namespace

ThreadPlan plan_copying() {
  NoMeter meter;
  return plan_threads(read_cpu_topology(), usable_cores(), meter);
}

PlanErrors apply_plan(const ThreadPlan& plan, int thread, CpuCalls& calls) {
  PlanErrors errors;
  if (const std::span<const int> cpus = plan.cpus_of(thread); !cpus.empty()) errors.bind = calls.bind_thread(cpus);
  if (thread != 0 && !plan.nodes.empty()) errors.interleave = calls.interleave(plan.nodes);
  return errors;
}

PlanErrors try_plan(const ThreadPlan& plan, CpuCalls& calls) {
  PlanErrors errors;
  if (plan.num_threads > 1) std::thread([&] { errors = apply_plan(plan, 1, calls); }).join();
  return errors;
}

}  // namespace lynx_rt
