// Tests what is read of CPUs, from made-up trees of several machines.
#include "base/cpu_topology.h"

#include "check.h"
#include "fake_machine.h"

using namespace lynx_rt;

namespace {

using Ints = std::vector<int>;
using Texts = std::vector<std::string>;

std::vector<int> values(const CpuTopology& topology, int Cpu::* member) {
  Ints out;
  for (const Cpu& cpu : topology.cpus) out.push_back(cpu.*member);
  return out;
}

void test_lists() {
  CHECK_EQ(parse_cpu_list(""), Ints{});
  CHECK_EQ(parse_cpu_list("5\n"), Ints{5});
  CHECK_EQ(parse_cpu_list("0-2,8,10-11\n"), (Ints{0, 1, 2, 8, 10, 11}));
  CHECK_EQ(parse_cpu_list("8,0-1"), (Ints{0, 1, 8}));
  CHECK_EQ(parse_cpu_list("3-1"), Ints{});
  CHECK_EQ(parse_cpu_list("1,x,3"), Ints{1});
  CHECK_EQ(parse_cpu_list("-1"), Ints{});
  CHECK_EQ(parse_cpu_list("1,99999999999,2"), Ints{1});
}

// cpu_set_t has 1024 bits; the kernel refuses a mask shorter than its own.
void test_more_than_1024_cpus() {
  const FakeMachine machine;
  FakeCalls calls(span_of(1000, 2047), 4096);
  CHECK_EQ(values(read_cpu_topology(machine.path(), calls), &Cpu::id), span_of(1000, 2047));
  CHECK_EQ(usable_cores(machine.path(), calls), 1048);
  FakeCalls refused({}, 0);
  CHECK(usable_cores(machine.path(), refused) >= 1);
}

void test_system_masks() {
  CHECK_EQ(bit_mask(Ints{}), std::vector<uint64_t>{});
  CHECK_EQ(bit_mask(Ints{0, 63, 130}), (std::vector<uint64_t>{1 | uint64_t(1) << 63, 0, 4}));
  std::vector<uint64_t> mask(1 << 11);
  if (CpuCalls::system().get_affinity(mask) != 0) return;  // not on Linux
  const std::vector<Cpu> cpus = read_cpu_topology().cpus;
  CHECK(!cpus.empty());
  for (const Cpu& cpu : cpus) CHECK(mask[size_t(cpu.id) / 64] >> cpu.id % 64 & 1);
}

void test_quota_and_cpuset() {
  const FakeMachine machine;
  machine.write("proc/self/cgroup", "0::/box\n");
  machine.write("proc/self/mountinfo", "30 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
  const std::string group = "sys/fs/cgroup/box/";
  FakeCalls calls(span_of(0, 15));
  CHECK_EQ(usable_cores(machine.path(), calls), 16);
  for (const auto& [quota, threads] :
       std::vector<std::pair<std::string, int>>{{"765000", 7}, {"50000", 1}, {"100000", 1}, {"1600000", 16}, {"9900000", 16}}) {
    machine.write(group + "cpu.max", quota + " 100000\n");
    CHECK_EQ(usable_cores(machine.path(), calls), threads);
    CHECK_EQ(std::min(16, read_cpu_topology(machine.path(), calls).threads_by_quota()), threads);
  }
  machine.write(group + "cpu.max", "max 100000\n");
  CHECK_EQ(read_cpu_topology(machine.path(), calls).threads_by_quota(), INT_MAX);
  machine.write(group + "cpuset.cpus.effective", "8-11,40\n");
  CHECK_EQ(values(read_cpu_topology(machine.path(), calls), &Cpu::id), span_of(8, 11));
  CHECK_EQ(usable_cores(machine.path(), calls), 4);
  machine.write(group + "cpuset.cpus.effective", "40-47\n");  // not this machine's: the mask counts
  CHECK_EQ(usable_cores(machine.path(), calls), 16);
}

void test_hybrid_intel() {
  FakeMachine machine;
  const CpuTopology all = alder_lake(machine).topology(span_of(0, 23));
  CHECK_EQ(all.kinds, (Texts{"cpu_core, up to 5200 MHz", "cpu_atom, up to 3900 MHz"}));
  CHECK_EQ(all.num_cores(0), 8);
  CHECK_EQ(all.num_cores(1), 8);
  CHECK_EQ(values(all, &Cpu::kind), (Ints{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1}));
  CHECK_EQ(values(all, &Cpu::core), (Ints{0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14, 16, 17, 18, 19, 20, 21, 22, 23}));
  CHECK_EQ(all.nodes(), Ints{0});

  const CpuTopology part = machine.topology({3, 4, 5, 17});  // a container's CPUs, one of them without its sibling
  CHECK_EQ(values(part, &Cpu::core), (Ints{2, 4, 4, 17}));
  CHECK_EQ(part.num_cores(0), 2);
  CHECK_EQ(part.kinds, (Texts{"cpu_core, up to 5100 MHz", "cpu_atom, up to 3900 MHz"}));
  CHECK_EQ(machine.topology({16, 17}).kinds, Texts{"cpu_atom, up to 3900 MHz"});
}

void test_arm() {
  FakeMachine machine;
  machine.cores(0, 3, 1, kCapacity, "250").cores(4, 6, 1, kCapacity, "870").cores(7, 7, 1, kCapacity, "1024");
  const CpuTopology all = machine.topology(span_of(0, 7));
  CHECK_EQ(all.kinds, (Texts{"capacity 1024", "capacity 250"}));
  CHECK_EQ(values(all, &Cpu::kind), (Ints{1, 1, 1, 1, 0, 0, 0, 0}));
}

void test_frequencies_alone() {
  FakeMachine machine;  // Zen 5 with Zen 5c
  machine.cores(0, 7, 2, kFrequency, "5100000").cores(8, 23, 2, kFrequency, "3300000");
  const CpuTopology all = machine.topology(span_of(0, 23));
  CHECK_EQ(all.kinds, (Texts{"up to 5100 MHz", "up to 3300 MHz"}));
  CHECK_EQ(all.num_cores(0), 4);
  CHECK_EQ(all.num_cores(1), 8);
}

void test_sockets() {
  FakeMachine machine;
  machine.cores(0, 15, 1, kFrequency, "3000000").node(0, "0-7").node(1, "8-15").node(2, "");  // node 2 is memory alone
  machine.write("sys/devices/system/node/possible", "0-2\n");
  const CpuTopology all = machine.topology(span_of(0, 15));
  CHECK_EQ(all.kinds.size(), 1);
  CHECK_EQ(all.nodes(), (Ints{0, 1}));
  CHECK_EQ(all.cpus[7].node, 0);
  CHECK_EQ(all.cpus[8].node, 1);
  CHECK_EQ(machine.topology(span_of(9, 12)).nodes(), Ints{1});
}

// Files that are missing, or unreadable for some CPUs, leave equal cores.
void test_missing_files() {
  FakeMachine machine;
  const CpuTopology nothing = machine.topology({2, 3});
  CHECK_EQ(values(nothing, &Cpu::core), (Ints{2, 3}));
  CHECK_EQ(nothing.kinds, Texts{"cores"});
  CHECK_EQ(nothing.nodes(), Ints{0});
  CHECK_EQ(nothing.quota, 0.0);
  machine.cores(0, 1, 1, kFrequency, "3000000").cores(2, 3, 1);
  machine.write(FakeMachine::of(3) + "topology/thread_siblings_list", "\n");
  CHECK_EQ(machine.topology(span_of(0, 3)).kinds, Texts{"cores"});
  machine.write(FakeMachine::of(2) + kFrequency, "unknown\n");
  CHECK_EQ(machine.topology(span_of(0, 3)).kinds, Texts{"cores"});
}

void test_model_names() {
  const FakeRoot root;
  CHECK_EQ(cpu_model(root.path()), "unknown CPU");
  root.write("proc/cpuinfo", "processor\t: 0\nflags\t\t:\nmodel name\t: Intel(R) Xeon(R) 6980P\n\nprocessor\t: 1\n");
  CHECK_EQ(cpu_model(root.path()), "Intel(R) Xeon(R) 6980P");
  root.write("proc/cpuinfo",
             "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd05\n\nprocessor\t: 1\nCPU implementer\t: 0x41\nCPU part\t: "
             "0xd05\n\n"
             "processor\t: 2\nCPU implementer\t: 0x41\nCPU part\t: 0xd0a\n");
  CHECK_EQ(cpu_model(root.path()), "ARM implementer 0x41, part 0xd05, part 0xd0a");
}

}  // namespace

int main() {
  test_lists();
  test_more_than_1024_cpus();
  test_system_masks();
  test_quota_and_cpuset();
  test_hybrid_intel();
  test_arm();
  test_frequencies_alone();
  test_sockets();
  test_missing_files();
  test_model_names();
  return check::result("test_cpu_topology");
}
