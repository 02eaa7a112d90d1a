// Tests limits of control groups, read from made-up /proc and /sys trees like those of kernels and containers.
#include "base/cgroup.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "fake_root.h"

using lynx_rt::cgroup_cpu_quota;
using lynx_rt::cgroup_cpuset;
using lynx_rt::cgroup_free_memory;

namespace {

constexpr int64_t kMiB = 1 << 20;

struct Root : FakeRoot {
  using FakeRoot::FakeRoot;
  int64_t memory() const { return cgroup_free_memory(path()); }
  double cores() const { return cgroup_cpu_quota(path()); }
  std::string cpus() const { return cgroup_cpuset(path()); }
};

const std::string kV2 = "30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
const std::string kV1 =
    "31 22 0:27 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n"
    "32 22 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:10 - cgroup cgroup rw,cpu,cpuacct\n";

std::string bytes(int64_t mib) { return std::to_string(mib * kMiB) + "\n"; }

void test_no_limit() {
  const Root nothing("", "", {});
  CHECK_EQ(nothing.memory(), INT64_MAX);
  CHECK_EQ(nothing.cores(), 0.0);
  const Root root("0::/\n", kV2, {{"sys/fs/cgroup/cgroup.procs", "1\n"}});  // the root group has no limit files
  CHECK_EQ(root.memory(), INT64_MAX);
  const Root max("0::/a\n", kV2,
                 {{"sys/fs/cgroup/a/memory.max", "max\n"},
                  {"sys/fs/cgroup/a/memory.high", "max\n"},
                  {"sys/fs/cgroup/a/memory.current", bytes(5)},
                  {"sys/fs/cgroup/a/cpu.max", "max 100000\n"}});
  CHECK_EQ(max.memory(), INT64_MAX);
  CHECK_EQ(max.cores(), 0.0);
}

// systemd-run -p MemoryMax=600M: the limit is two groups below the root, one above the process.
void test_v2_below_the_root() {
  const std::string slice = "sys/fs/cgroup/system.slice/", run = slice + "run-1.service/", leaf = run + "worker/";
  const Root root("0::/system.slice/run-1.service/worker\n", kV2,
                  {{slice + "memory.max", "max\n"},
                   {slice + "memory.current", bytes(9000)},
                   {slice + "cpu.max", "400000 100000\n"},
                   {run + "memory.max", bytes(600)},
                   {run + "memory.current", bytes(150)},
                   {run + "cpu.max", "765000 100000\n"},
                   {run + "memory.stat", "anon 1\ninactive_file " + bytes(30) + "active_file " + bytes(20) + "file " + bytes(70)},
                   {leaf + "memory.max", "max\n"},
                   {leaf + "memory.current", bytes(140)}});
  CHECK_EQ(root.memory(), (600 - 150 + 50) * kMiB);
  CHECK_EQ(root.cores(), 4.0);
  root.write(slice + "cpu.max", "max 100000\n");
  CHECK_EQ(root.cores(), 7.65);
  root.write(leaf + "memory.high", bytes(200));
  CHECK_EQ(root.memory(), (200 - 140) * kMiB);
  root.write(leaf + "memory.current", bytes(201));
  CHECK_EQ(root.memory(), 0);
}

void test_v1() {
  const std::string memory = "sys/fs/cgroup/memory/", cpu = "sys/fs/cgroup/cpu,cpuacct/";
  const Root root("4:memory:/tiers/probe\n2:cpu,cpuacct:/user\n0::/\n", kV1,
                  {{memory + "memory.limit_in_bytes", "9223372036854771712\n"},
                   {memory + "memory.usage_in_bytes", bytes(9000)},
                   {memory + "tiers/memory.limit_in_bytes", bytes(600)},
                   {memory + "tiers/memory.usage_in_bytes", bytes(100)},
                   {memory + "tiers/memory.stat", "inactive_file 1\ntotal_inactive_file " + bytes(40) + "total_active_file 0\n"},
                   {memory + "tiers/probe/memory.limit_in_bytes", "9223372036854771712\n"},
                   {memory + "tiers/probe/memory.usage_in_bytes", bytes(90)},
                   {cpu + "cpu.cfs_quota_us", "-1\n"},
                   {cpu + "cpu.cfs_period_us", "100000\n"},
                   {cpu + "user/cpu.cfs_quota_us", "150000\n"},
                   {cpu + "user/cpu.cfs_period_us", "100000\n"}});
  CHECK_EQ(root.memory(), (600 - 100 + 40) * kMiB);
  CHECK_EQ(root.cores(), 1.5);
}

// Containers: the group's path in /proc is the host's, and the mount is that group or an unrelated one.
void test_containers() {
  const std::vector<std::pair<std::string, std::string>> files = {{"sys/fs/cgroup/memory.max", bytes(256)},
                                                                  {"sys/fs/cgroup/memory.current", bytes(56)},
                                                                  {"sys/fs/cgroup/inner/memory.max", bytes(100)},
                                                                  {"sys/fs/cgroup/inner/memory.current", bytes(1)}};
  const std::string mounted = "30 22 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
  CHECK_EQ(Root("0::/docker/abc\n", mounted, files).memory(), 200 * kMiB);
  CHECK_EQ(Root("0::/docker/abc/inner\n", mounted, files).memory(), 99 * kMiB);
  CHECK_EQ(Root("0::/docker/abcdef\n", mounted, files).memory(),
           200 * kMiB);                                                   // another group whose name begins with the same text
  CHECK_EQ(Root("0::/../other\n", mounted, files).memory(), 200 * kMiB);  // moved out of its namespace
  CHECK_EQ(Root("0::/\n", mounted, files).memory(), 200 * kMiB);
  CHECK_EQ(Root("0::/gone\n", kV2, files).memory(), 200 * kMiB);  // a group without a folder
}

// v1 controllers beside an empty v2 hierarchy, a mount point with a space, and lines without information.
void test_odd_mounts() {
  const Root root("0::/x\n4:memory:/m\nbad\n",
                  "40 22 0:29 / /sys/fs/cgroup/uni\\040fied rw - cgroup2 none rw\nshort line\n" + kV1,
                  {{"sys/fs/cgroup/uni fied/x/memory.max", bytes(70)},
                   {"sys/fs/cgroup/uni fied/x/memory.current", bytes(1)},
                   {"sys/fs/cgroup/memory/m/memory.limit_in_bytes", bytes(90)},
                   {"sys/fs/cgroup/memory/m/memory.usage_in_bytes", bytes(2)}});
  CHECK_EQ(root.memory(), 69 * kMiB);
}

// Quotas of several groups above the process: the tightest counts, wherever it is. v1's and v2's hierarchies may be mounted together.
void test_nested_quotas() {
  const std::string pod = "sys/fs/cgroup/kubepods/pod1/";
  const Root root("0::/kubepods/pod1/box\n", kV2,
                  {{"sys/fs/cgroup/kubepods/cpu.max", "800000 100000\n"},
                   {pod + "cpu.max", "150000 100000\n"},
                   {pod + "box/cpu.max", "50000 20000\n"}});
  CHECK_EQ(root.cores(), 1.5);
  root.write(pod + "box/cpu.max", "50000 100000\n");
  CHECK_EQ(root.cores(), 0.5);
  const std::string cpu = "sys/fs/cgroup/cpu,cpuacct/docker/";
  const Root hybrid(
      "3:cpu,cpuacct:/docker\n0::/docker\n", "40 22 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n" + kV1,
      {{"sys/fs/cgroup/unified/docker/cgroup.procs", "1\n"},  // the controller is v1's, so v2's groups have no limits
       {cpu + "cpu.cfs_quota_us", "765000\n"},
       {cpu + "cpu.cfs_period_us", "100000\n"}});
  CHECK_EQ(hybrid.cores(), 7.65);
}

void test_cpusets() {
  CHECK_EQ(Root("", "", {}).cpus(), "");
  const std::string slice = "sys/fs/cgroup/a/";
  const Root root("0::/a/b\n", kV2,
                  {{"sys/fs/cgroup/cpuset.cpus.effective", "0-15\n"},
                   {slice + "cpuset.cpus", "4-7,20\n"},
                   {slice + "cpuset.cpus.effective", "4-7\n"}});
  CHECK_EQ(root.cpus(), "4-7");  // the group below has no cpuset of its own
  root.write(slice + "b/cpuset.cpus", "\n");
  root.write(slice + "b/cpuset.cpus.effective", "4-5\n");
  CHECK_EQ(root.cpus(), "4-5");
  const std::string mount = "33 22 0:30 /box /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n";  // inside a container
  const Root v1("5:cpuset:/box\n0::/\n", mount, {{"sys/fs/cgroup/cpuset/cpuset.cpus", "2-3\n"}});
  CHECK_EQ(v1.cpus(), "2-3");
  v1.write("sys/fs/cgroup/cpuset/cpuset.effective_cpus", "3\n");
  CHECK_EQ(v1.cpus(), "3");
}

}  // namespace

int main() {
  test_no_limit();
  test_v2_below_the_root();
  test_v1();
  test_containers();
  test_odd_mounts();
  test_nested_quotas();
  test_cpusets();
  return check::result("test_cgroup");
}
