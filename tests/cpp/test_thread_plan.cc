// Tests which threads are chosen on made-up machines, where they and their memory go, and the measuring of this machine's cores.
#include "base/thread_plan.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <thread>

#include "backend/cpu/core_meter.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/device_array.h"
#include "base/thread_pool.h"
#include "check.h"
#include "fake_machine.h"

using namespace lynx_rt;

namespace {

using Ints = std::vector<int>;
using Groups = std::vector<Ints>;

bool says(const ThreadPlan& plan, const std::string& text) { return plan.reason.find(text) != std::string::npos; }

// Equal cores on one node: one thread each, and nothing to measure or to bind.
void test_equal_cores() {
  FakeMachine machine;
  machine.cores(0, 7, 1, kFrequency, "3000000").node(0, "0-7");
  FakeMeter meter({}, {});
  const ThreadPlan plan = plan_threads(machine.topology(span_of(0, 7)), 0, meter);
  CHECK_EQ(plan.num_threads, 8);
  CHECK_EQ(plan.slowest, 1.0);
  CHECK_EQ(plan.groups, Groups{});
  CHECK_EQ(plan.nodes, Ints{});
  CHECK_EQ(plan.reason, "one per core");
  CHECK_EQ(meter.asked, 0);
}

void test_hybrid() {
  FakeMachine machine;
  CpuTopology cpus = alder_lake(machine).topology(span_of(0, 23));
  const auto plan_of = [&](double slow, double with_siblings, int wanted = 0) {
    FakeMeter meter({{0, 90}, {14, 100}, {16, slow}, {23, slow / 2}}, {{16, 50}, {24, with_siblings}, {8, 50}});
    return plan_threads(cpus, wanted, meter);
  };
  const ThreadPlan both = plan_of(45, 51);
  CHECK_EQ(both.num_threads, 16);
  CHECK_EQ(both.slowest, 0.45);
  CHECK_EQ(both.groups, Groups{});
  CHECK(says(both, "8 cores of kind cpu_atom, up to 3900 MHz used: 45 % of the fastest's arithmetic"));
  CHECK(says(both, "hyperthreads not used: with them, the cores read 102 %"));
  CHECK_EQ(plan_of(45, 56).num_threads, 24);  // more than a tenth more
  CHECK_EQ(plan_of(120, 51).slowest, 1.0);    // a kind that the system takes for slower

  // Slow cores are not used: threads are kept away from them.
  const ThreadPlan fast = plan_of(33, 51);
  CHECK_EQ(fast.num_threads, 8);
  CHECK_EQ(fast.slowest, 1.0);
  CHECK_EQ(fast.groups, Groups{span_of(0, 15)});
  CHECK_EQ(fast.nodes, Ints{});
  CHECK(says(fast, "not used: 33 %"));
  CHECK_EQ(plan_of(0, 51).num_threads, 16);  // not measured
  CHECK_EQ(plan_of(0, 51).slowest, 1.0 / 3);
  CHECK(says(plan_of(0, 51), "unknown"));

  // A number that was asked for stands. Slow cores make tasks smaller where there are too few fast ones.
  CHECK_EQ(plan_of(45, 51, 40).num_threads, 40);
  CHECK_EQ(plan_of(45, 51, 12).slowest, 0.45);
  CHECK_EQ(plan_of(10, 51, 12).slowest, 1.0 / 3);  // bounded, as tasks have to be worth their overhead
  CHECK_EQ(plan_of(45, 51, 8).slowest, 1.0);
  CHECK_EQ(plan_of(45, 51, 12).groups, Groups{});

  // A quota takes the fast cores first, and what it leaves no room for is not measured.
  FakeMeter meter({}, {});
  cpus.quota = 4.5;
  const ThreadPlan four = plan_threads(cpus, 0, meter);
  CHECK_EQ(four.num_threads, 4);
  CHECK_EQ(four.groups, Groups{span_of(0, 15)});
  CHECK_EQ(four.reason, "the CPU quota of 4.5, rounded down");
  CHECK_EQ(meter.asked, 0);
  cpus.quota = 0.5;
  CHECK_EQ(plan_threads(cpus, 0, meter).num_threads, 1);
  cpus.quota = 10;
  CHECK_EQ(plan_of(45, 51).num_threads, 10);
  CHECK_EQ(plan_of(33, 51).num_threads, 8);
}

// Returns the time of a loop of one unit of work in equal tasks. The core that is free first takes a task, or as many of those that
// are left as parallel_runs() takes.
double loop_time(const std::vector<double>& speeds, int64_t tasks, bool runs) {
  std::vector<double> free_at(speeds.size());
  for (int64_t left = tasks; left > 0;) {
    const size_t core = size_t(std::min_element(free_at.begin(), free_at.end()) - free_at.begin());
    const int64_t share = 4 * int64_t(speeds.size()), taken = runs ? (left + share - 1) / share : 1;
    free_at[core] += double(taken) / double(tasks) / speeds[core];
    left -= taken;
  }
  return *std::max_element(free_at.begin(), free_at.end());
}

void test_last_task() {
  int too_long = 0;  // of loops whose tasks do not regard the slow cores
  for (const double slow : {1.0, 0.8, 0.6, 0.45, 0.34})
    for (const int fast_cores : {1, 2, 4, 8, 31})
      for (const int slow_cores : {1, 3, 8}) {
        std::vector<double> speeds(size_t(fast_cores), 1.0);
        speeds.resize(size_t(fast_cores + slow_cores), slow);
        ThreadPlan plan;
        plan.num_threads = fast_cores + slow_cores;
        const double ideal = 1 / (fast_cores + slow * slow_cores);
        too_long += loop_time(speeds, plan.balanced_tasks(), false) > 1.126 * ideal;
        plan.slowest = slow;
        for (const bool runs : {false, true}) CHECK(loop_time(speeds, plan.balanced_tasks(), runs) <= 1.126 * ideal);
      }
  CHECK(too_long > 0);
}

// Two CPUs of one core, which is what small virtual machines are: two threads where they read faster than one.
void test_siblings() {
  FakeMachine machine;
  const CpuTopology cpus = machine.cores(0, 1, 2).topology({0, 1});
  FakeMeter faster({}, {{1, 11}, {2, 17}}), same({}, {{1, 11}, {2, 11.5}}), unknown({}, {});
  CHECK_EQ(plan_threads(cpus, 0, faster).num_threads, 2);
  CHECK_EQ(plan_threads(cpus, 0, same).num_threads, 1);
  CHECK_EQ(same.asked, 6);
  CHECK_EQ(faster.asked, 2);  // once is enough
  CHECK_EQ(plan_threads(cpus, 0, unknown).num_threads, 2);
  CHECK(says(plan_threads(cpus, 0, unknown), "cannot be measured"));
  CHECK_EQ(plan_threads(cpus, 1, unknown).num_threads, 1);
}

void test_big_little() {
  FakeMachine machine;
  machine.cores(0, 3, 1, kCapacity, "250").cores(4, 7, 1, kCapacity, "1024");
  FakeMeter meter({{0, 20}, {3, 21}, {4, 100}, {7, 100}}, {});
  const ThreadPlan plan = plan_threads(machine.topology(span_of(0, 7)), 0, meter);
  CHECK_EQ(plan.num_threads, 4);
  CHECK_EQ(plan.groups, Groups{span_of(4, 7)});
}

// Threads in use of the nodes' CPUs by their numbers; the caller's own thread, 0, stays where it is.
void test_nodes() {
  FakeMachine machine;
  machine.cores(0, 7, 2).cores(8, 15, 2).node(0, "0-7").node(1, "8-15");
  FakeMeter meter({}, {{8, 100}, {16, 101}});
  const CpuTopology cpus = machine.topology(span_of(0, 15));
  const ThreadPlan plan = plan_threads(cpus, 0, meter);
  CHECK_EQ(plan.num_threads, 8);
  CHECK_EQ(plan.groups, (Groups{span_of(0, 7), span_of(8, 15)}));
  CHECK_EQ(plan.nodes, (Ints{0, 1}));
  for (int t = 0; t < 8; ++t)
    CHECK_EQ(Ints(plan.cpus_of(t).begin(), plan.cpus_of(t).end()), t == 0 ? Ints{} : plan.groups[size_t(t) / 4]);

  const ThreadPlan asked = plan_threads(cpus, 2, meter);
  CHECK_EQ(asked.groups, plan.groups);
  CHECK_EQ(asked.cpus_of(1)[0], 8);
  CHECK_EQ(plan_threads(cpus, 1, meter).nodes, Ints{});  // no thread but the caller's

  // A container has 2 CPUs of one node and 6 of the other.
  const ThreadPlan uneven = plan_threads(machine.topology({0, 2, 8, 9, 10, 11, 12, 14}), 8, meter);
  int first = 0;
  for (int t = 1; t < 8; ++t) first += uneven.cpus_of(t)[0] == 0;
  CHECK_EQ(first, 1);
  CHECK_EQ(plan_threads(machine.topology(span_of(8, 11)), 0, meter).nodes, Ints{});
}

// The calls that the threads of a pool make, and that a pool works where the kernel forbids them.
void test_calls_of_a_pool() {
  ThreadPlan plan;
  plan.num_threads = 4;
  plan.groups = {{0, 1}, {2, 3}};
  plan.nodes = {0, 2};
  for (const int error : {0, EPERM}) {
    FakeCalls calls({}, 64, error, error);
    {
      ThreadPool pool(plan, calls);
      std::atomic<int64_t> sum = 0;
      pool.parallel_for(100, [&](int64_t i, int) { sum += i; });
      CHECK_EQ(sum.load(), 4950);
    }
    std::sort(calls.bound.begin(), calls.bound.end());
    CHECK_EQ(calls.bound, (Groups{{0, 1}, {2, 3}, {2, 3}}));
    CHECK_EQ(calls.interleaved, (Groups{{0, 2}, {0, 2}, {0, 2}}));
  }
  FakeCalls forbidden({}, 64, 0, EPERM);
  const PlanErrors errors = try_plan(plan, forbidden);
  CHECK_EQ(errors.bind, 0);
  CHECK_EQ(errors.interleave, EPERM);

  // One node: no calls.
  FakeCalls calls({});
  {
    ThreadPool pool(ThreadPlan{.num_threads = 4}, calls);
  }
  CHECK_EQ(try_plan(ThreadPlan{.num_threads = 4}, calls).bind, 0);
  CHECK(calls.bound.empty() && calls.interleaved.empty());
}

// A thread is where its calls put it, as far as the kernel tells. Runs on Linux, as far as calls are not forbidden.
void test_system_calls_take_effect() {
  const CpuTopology here = read_cpu_topology();
  const int cpu = here.cpus.back().id;
  const Ints nodes = here.nodes();
  std::thread([&] {
    CpuCalls& calls = CpuCalls::system();
    if (calls.bind_thread(std::span(&cpu, 1)) == 0) CHECK_EQ(read_cpu_topology().cpus.size(), 1);
#if defined(__linux__)
    if (calls.interleave(nodes) == 0) {
      int policy = -1;
      std::vector<uint64_t> mask(64);
      if (syscall(SYS_get_mempolicy, &policy, mask.data(), mask.size() * 64, nullptr, 0) == 0) {
        CHECK_EQ(policy, 3);  // MPOL_INTERLEAVE
        mask.resize(bit_mask(nodes).size());
        CHECK_EQ(mask, bit_mask(nodes));
      }
    }
#endif
  }).join();
  CHECK_EQ(read_cpu_topology().cpus.size(), here.cpus.size());  // other threads stay as they were
}

// Products have the same bits under any plan.
void test_results_do_not_depend_on_the_plan() {
  const int64_t rows = 5, n = 210, k = 96;
  std::vector<float> x(size_t(rows * k)), w(size_t(n * k));
  for (size_t i = 0; i < x.size(); ++i) x[i] = float(i % 17) / 7 - 1;
  for (size_t i = 0; i < w.size(); ++i) w[i] = float(i % 23) / 9 - 1;
  const LinearPart part{{w.data(), DType::kF32, n, k}, {}, 0};
  const auto product = [&](const ThreadPlan& plan) {
    CpuBackend backend(BackendOptions{}, plan);
    std::vector<float> out(size_t(rows * n));
    static_cast<Backend&>(backend).linear(Activations(x.data(), rows, k), {&part, 1}, false, out.data(), n);
    return out;
  };
  ThreadPlan plan;
  const std::vector<float> alone = product(plan);
  plan.num_threads = 3;
  plan.slowest = 0.4;
  plan.nodes = {0, 1};
  for (const Cpu& cpu : read_cpu_topology().cpus) plan.groups.push_back({cpu.id});
  CHECK_EQ(plan.balanced_tasks(), 60);
  CHECK(product(plan) == alone);
}

// The kernel takes the masks, here with what the process may use.
void test_system_calls() {
  const CpuTopology here = read_cpu_topology();
  ThreadPlan plan;
  plan.num_threads = 2;
  plan.nodes = here.nodes();
  for (const Cpu& cpu : here.cpus) plan.groups.resize(1), plan.groups[0].push_back(cpu.id);
  const PlanErrors errors = try_plan(plan);
  CHECK(errors.bind == 0 || errors.bind == EPERM || errors.bind == ENOSYS);
  CHECK(errors.interleave == 0 || errors.interleave == EPERM || errors.interleave == ENOSYS);
  plan.nodes = {1023};
  CHECK(try_plan(plan).interleave != 0);
  plan.groups = {{100000}};
  CHECK(try_plan(plan).bind != 0);
}

void test_meter() {
  const CpuTopology here = read_cpu_topology();
  KernelMeter meter;
  Ints cpus;
  for (const Cpu& cpu : here.cpus) cpus.push_back(cpu.id);
  if (CpuCalls calls; calls.bind_thread(cpus) == 0) {
    CHECK(meter.arithmetic(cpus[0]) > 1e3);  // products of 0.26 MFLOP a second
#if defined(__x86_64__)
    CHECK(meter.reading(cpus) > 1e8);  // bytes a second
#endif
  }
  CHECK_EQ(meter.arithmetic(100000), 0.0);
  CHECK_EQ(meter.reading(Ints{cpus[0], 100000}), 0.0);

  const ThreadPlan plan = plan_computing(0);
  CHECK(plan.num_threads >= 1 && plan.num_threads <= usable_cores());
  CHECK_EQ(plan_computing(3).num_threads, 3);
  CHECK_EQ(plan_computing(0).num_threads, plan.num_threads);
}

}  // namespace

int main() {
  test_equal_cores();
  test_hybrid();
  test_last_task();
  test_siblings();
  test_big_little();
  test_nodes();
  test_calls_of_a_pool();
  test_system_calls();
  test_system_calls_take_effect();
  test_results_do_not_depend_on_the_plan();
  test_meter();
  return check::result("test_thread_plan");
}
