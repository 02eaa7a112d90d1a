// Sources of the formats: the kernel's Documentation/ABI/stable/sysfs-devices-system-cpu and sysfs-devices-node, ABI/testing/
// sysfs-devices-system-cpu (cpu_capacity), admin-guide/pm/cpufreq.rst (cpuinfo_max_freq), and perf's devices cpu_core and cpu_atom of
// hybrid Intel CPUs.
#include "base/cpu_topology.h"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <climits>
#include <filesystem>
#include <fstream>
#include <set>

#include "base/cgroup.h"
#include "base/error.h"

namespace lynx_rt {

namespace {

constexpr int kMostCpus = 1 << 17;
constexpr double kSameKind =
    0.8;  // a core with at least this share of another's rating is of its kind: cores of one design differ by
          // the highest frequency that they were sold for

std::string read_line(const std::string& file) {
  std::ifstream in(file);
  std::string line;
  std::getline(in, line);
  return line;
}

std::vector<int> cpus_by_affinity(CpuCalls& calls) {
  std::vector<uint64_t> mask;
  int error = EINVAL;
  for (size_t bits = 1024; error == EINVAL && bits <= kMostCpus; bits *= 2) {
    mask.assign(bits / 64, 0);
    error = calls.get_affinity(mask);
  }
  std::vector<int> cpus;
  if (error == 0)
    for (int i = 0; i < int(mask.size()) * 64; ++i)
      if (mask[size_t(i) / 64] >> i % 64 & 1) cpus.push_back(i);
  if (cpus.empty())
    for (int i = 0; i < count_cpus(); ++i) cpus.push_back(i);
  return cpus;
}

// The affinity mask has the CPUs of the cpuset alone on Linux itself. Sandboxes that stand in for the kernel may show a wider mask.
std::vector<int> usable_cpus(const std::string& root, CpuCalls& calls) {
  const std::vector<int> mask = cpus_by_affinity(calls), allowed = parse_cpu_list(cgroup_cpuset(root));
  std::vector<int> both;
  std::set_intersection(mask.begin(), mask.end(), allowed.begin(), allowed.end(), std::back_inserter(both));
  return both.empty() ? mask : both;
}

int quota_threads(double quota) { return quota > 0 ? int(std::clamp(quota, 1.0, double(INT_MAX))) : INT_MAX; }

// Speed of a core, as the system states it.
struct Rating {
  bool atom = false;  // one of the efficient cores of a hybrid Intel CPU
  int64_t value = 0;  // capacity, or highest frequency in kHz
};

struct RatedCpus {
  std::vector<Rating> ratings;  // of CpuTopology::cpus
  bool by_capacity = false, hybrid = false;
};

RatedCpus read_ratings(const std::string& root, const std::vector<Cpu>& cpus) {
  RatedCpus out;
  out.ratings.resize(cpus.size());
  const auto read_all = [&](const char* file) {
    for (size_t i = 0; i < cpus.size(); ++i) {
      std::ifstream in(str_cat(root, "/sys/devices/system/cpu/cpu", cpus[i].id, "/", file));
      if (!(in >> out.ratings[i].value)) return false;
    }
    return true;
  };
  out.by_capacity = read_all("cpu_capacity");
  if (!out.by_capacity && !read_all("cpufreq/cpuinfo_max_freq"))
    for (Rating& r : out.ratings) r.value = 0;
  const std::vector<int> atoms = parse_cpu_list(read_line(root + "/sys/devices/cpu_atom/cpus"));
  const std::vector<int> cores = parse_cpu_list(read_line(root + "/sys/devices/cpu_core/cpus"));
  out.hybrid = !atoms.empty() && !cores.empty();
  for (size_t i = 0; i < cpus.size(); ++i)
    out.ratings[i].atom = out.hybrid && std::find(atoms.begin(), atoms.end(), cpus[i].id) != atoms.end();
  return out;
}

std::string kind_name(const RatedCpus& rated, const Rating& rating) {
  std::string name = rated.hybrid ? (rating.atom ? "cpu_atom" : "cpu_core") : "";
  if (rating.value == 0) return name.empty() ? "cores" : name;
  if (!name.empty()) name += ", ";
  return rated.by_capacity ? str_cat(name, "capacity ", rating.value) : str_cat(name, "up to ", rating.value / 1000, " MHz");
}

void set_kinds(const RatedCpus& rated, CpuTopology& topology) {
  std::vector<size_t> order(topology.cpus.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const Rating &x = rated.ratings[a], &y = rated.ratings[b];
    return x.atom != y.atom ? y.atom : x.value > y.value;
  });
  const Rating* first = nullptr;  // of the kind
  for (const size_t i : order) {
    const Rating& r = rated.ratings[i];
    if (!first || r.atom != first->atom || double(r.value) < kSameKind * double(first->value)) {
      first = &r;
      topology.kinds.push_back(kind_name(rated, r));
    }
    topology.cpus[i].kind = int(topology.kinds.size()) - 1;
  }
}

void set_nodes(const std::string& root, std::vector<Cpu>& cpus) {
  std::error_code missing;
  for (const auto& entry : std::filesystem::directory_iterator(root + "/sys/devices/system/node", missing)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("node") || name.size() == 4 || !std::isdigit(static_cast<unsigned char>(name[4]))) continue;
    const std::vector<int> own = parse_cpu_list(read_line(entry.path().string() + "/cpulist"));
    for (Cpu& cpu : cpus)
      if (std::binary_search(own.begin(), own.end(), cpu.id)) cpu.node = std::atoi(name.c_str() + 4);
  }
}

}  // namespace

std::vector<int> parse_cpu_list(const std::string& text) {
  std::set<int> numbers;
  const char* at = text.c_str();
  for (;;) {
    int begin, end, used = 0;
    if (std::sscanf(at, "%d-%d%n", &begin, &end, &used) != 2 || used == 0) {
      if (std::sscanf(at, "%d%n", &begin, &used) != 1) break;
      end = begin;
    }
    if (begin < 0 || end >= kMostCpus) break;
    for (int i = begin; i <= end; ++i) numbers.insert(i);
    at += used;
    if (*at++ != ',') break;
  }
  return {numbers.begin(), numbers.end()};
}

int CpuTopology::threads_by_quota() const { return quota_threads(quota); }

std::vector<int> CpuTopology::nodes() const {
  std::set<int> found;
  for (const Cpu& cpu : cpus) found.insert(cpu.node);
  return {found.begin(), found.end()};
}

int CpuTopology::num_cores(int kind) const {
  std::set<int> cores;
  for (const Cpu& cpu : cpus)
    if (cpu.kind == kind) cores.insert(cpu.core);
  return int(cores.size());
}

CpuTopology read_cpu_topology(const std::string& root, CpuCalls& calls) {
  CpuTopology topology;
  for (const int id : usable_cpus(root, calls)) {
    const std::vector<int> siblings =
        parse_cpu_list(read_line(str_cat(root, "/sys/devices/system/cpu/cpu", id, "/topology/thread_siblings_list")));
    topology.cpus.push_back({id, siblings.empty() ? id : std::min(id, siblings[0]), 0, 0});
  }
  set_kinds(read_ratings(root, topology.cpus), topology);
  set_nodes(root, topology.cpus);
  topology.quota = cgroup_cpu_quota(root);
  return topology;
}

int usable_cores(const std::string& root, CpuCalls& calls) {
  return std::min(int(usable_cpus(root, calls).size()), quota_threads(cgroup_cpu_quota(root)));
}

std::string cpu_model(const std::string& root) {
  std::string line, arm;
  for (std::ifstream in(root + "/proc/cpuinfo"); std::getline(in, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos || colon + 2 >= line.size()) continue;
    const std::string key = line.substr(0, line.find_last_not_of(" \t", colon - 1) + 1), value = line.substr(colon + 2);
    if (key == "model name") return value;
    // ARM's kernel has numbers instead of names (MIDR_EL1), and different ones for the kinds of cores.
    if (key == "CPU implementer" && arm.find(value) == std::string::npos)
      arm += (arm.empty() ? "ARM implementer " : ", ") + value;
    if (key == "CPU part" && arm.find("part " + value) == std::string::npos) arm += ", part " + value;
  }
  if (arm.empty()) arm = model_by_call();
  return arm.empty() ? "unknown CPU" : arm;
}

}  // namespace lynx_rt
