// Machines that a test makes up: their /sys trees, the answers of their kernels, and the speeds of their cores.
#pragma once
#include <algorithm>
#include <cerrno>
#include <climits>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "base/thread_plan.h"
#include "fake_root.h"

// The CPUs from `first` to `last`.
inline std::vector<int> span_of(int first, int last) {
  std::vector<int> out;
  for (int i = first; i <= last; ++i) out.push_back(i);
  return out;
}

// Answers like a kernel with `bits` CPUs in its masks, and records what threads ask for.
class FakeCalls final : public lynx_rt::CpuCalls {
 public:
  explicit FakeCalls(std::vector<int> cpus, size_t bits = 64, int bind_error = 0, int interleave_error = 0)
      : cpus_(std::move(cpus)), bits_(bits), bind_error_(bind_error), interleave_error_(interleave_error) {}

  int get_affinity(std::span<uint64_t> mask) override {
    if (bits_ == 0) return EPERM;
    if (mask.size() * 64 < bits_) return EINVAL;
    const std::vector<uint64_t> ours = lynx_rt::bit_mask(cpus_);
    std::copy(ours.begin(), ours.end(), mask.begin());
    return 0;
  }
  int bind_thread(std::span<const int> cpus) override {
    std::lock_guard lock(mutex_);
    bound.emplace_back(cpus.begin(), cpus.end());
    return bind_error_;
  }
  int interleave(std::span<const int> nodes) override {
    std::lock_guard lock(mutex_);
    interleaved.emplace_back(nodes.begin(), nodes.end());
    return interleave_error_;
  }

  std::vector<std::vector<int>> bound, interleaved;  // one entry per call, of threads in any order

 private:
  std::mutex mutex_;
  std::vector<int> cpus_;
  size_t bits_;
  int bind_error_, interleave_error_;
};

// Cores with these rates, and memory that is read at a rate that depends on the number of CPUs alone.
class FakeMeter final : public lynx_rt::CoreMeter {
 public:
  FakeMeter(std::map<int, double> arithmetic, std::map<int, double> reading)
      : arithmetic_(std::move(arithmetic)), reading_(std::move(reading)) {}
  double arithmetic(int cpu) override {
    ++asked;
    return arithmetic_.contains(cpu) ? arithmetic_[cpu] : 0;
  }
  double reading(std::span<const int> cpus) override {
    ++asked;
    return reading_.contains(int(cpus.size())) ? reading_[int(cpus.size())] : 0;
  }
  int asked = 0;

 private:
  std::map<int, double> arithmetic_, reading_;
};

// The /sys tree of a machine.
class FakeMachine : public FakeRoot {
 public:
  static std::string of(int cpu) { return "sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/"; }
  // CPUs first .. last, `threads` neighbours to a core; `file` and `rating` say what is known about their speed ("" = nothing).
  FakeMachine& cores(int first, int last, int threads, const std::string& file = "", const std::string& rating = "") {
    for (int cpu = first; cpu <= last; ++cpu) {
      const int core = cpu - (cpu - first) % threads;
      write(of(cpu) + "topology/thread_siblings_list",
            threads == 1 ? std::to_string(cpu) + "\n" : std::to_string(core) + "-" + std::to_string(core + threads - 1) + "\n");
      if (!file.empty()) write(of(cpu) + file, rating + "\n");
    }
    return *this;
  }
  FakeMachine& node(int number, const std::string& cpus) {
    write("sys/devices/system/node/node" + std::to_string(number) + "/cpulist", cpus + "\n");
    return *this;
  }
  lynx_rt::CpuTopology topology(const std::vector<int>& usable) const {
    FakeCalls calls(usable, 128);
    return lynx_rt::read_cpu_topology(path(), calls);
  }
};

constexpr const char* kFrequency = "cpufreq/cpuinfo_max_freq";
constexpr const char* kCapacity = "cpu_capacity";

// An i9-12900K: 8 cores with two CPUs each and 8 with one.
inline FakeMachine& alder_lake(FakeMachine& machine) {
  machine.cores(0, 15, 2, kFrequency, "5100000").cores(16, 23, 1, kFrequency, "3900000").node(0, "0-23");
  machine.write(FakeMachine::of(8) + kFrequency, "5200000\n");  // two of the fast cores are sold for a higher frequency
  machine.write("sys/devices/cpu_core/cpus", "0-15\n");
  machine.write("sys/devices/cpu_atom/cpus", "16-23\n");
  return machine;
}
