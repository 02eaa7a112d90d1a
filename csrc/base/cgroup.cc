// Sources of the formats: cgroups(7), proc_pid_mountinfo(5), and the kernel's cgroup-v1/memory.rst,
// cgroup-v1/cpusets.rst, cgroup-v1/cpu (scheduler/sched-bwc.rst), cgroup-v2.rst.
#include "base/cgroup.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <vector>

namespace lynx_rt {

namespace {

// A hierarchy of groups: they are the folders below `mount`; the process's own is mount + path.
struct Hierarchy {
  bool v2;
  std::string mount, path;
};

bool has_item(const std::string& list, const std::string& item) {
  std::istringstream in(list);
  for (std::string one; std::getline(in, one, ',');)
    if (one == item) return true;
  return false;
}

// Decodes octal escapes: mountinfo writes a space as \040, and other special characters likewise.
std::string unescape(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool octal = text[i] == '\\' && i + 3 < text.size() &&
                       std::all_of(&text[i + 1], &text[i + 1] + 3, [](char c) { return c >= '0' && c <= '7'; });
    if (!octal) {
      out += text[i];
      continue;
    }
    out += char((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0'));
    i += 3;
  }
  return out;
}

// Returns the part of a group's path below the mounted group. A group outside the mounted one, which containers may see, has no
// folder here; the mounted group is the nearest to it.
std::string below(const std::string& path, const std::string& mounted) {
  if (path.find("/..") != std::string::npos || path == "/") return "";
  if (mounted == "/") return path;
  const bool inside = path.starts_with(mounted) && (path.size() == mounted.size() || path[mounted.size()] == '/');
  return inside ? path.substr(mounted.size()) : "";
}

// Returns the v2 hierarchy and the controller's v1 hierarchy, as far as they are mounted.
std::vector<Hierarchy> hierarchies(const std::string& root, const std::string& controller) {
  std::string line, v1_path, v2_path;
  for (std::ifstream groups(root + "/proc/self/cgroup"); std::getline(groups, line);) {  // "4:cpu,cpuacct:/path", "0::/path"
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
    if (controllers.empty()) v2_path = path;
    if (has_item(controllers, controller)) v1_path = path;
  }
  std::vector<Hierarchy> found;
  for (std::ifstream mounts(root + "/proc/self/mountinfo"); std::getline(mounts, line);) {
    const size_t dash = line.find(" - ");  // optional fields end here
    if (dash == std::string::npos) continue;
    std::istringstream head(line.substr(0, dash)), tail(line.substr(dash + 3));
    std::string id, parent, device, mounted, mount, type, source, options;
    head >> id >> parent >> device >> mounted >> mount;
    tail >> type >> source >> options;
    const bool v2 = type == "cgroup2";
    if (!v2 && !(type == "cgroup" && has_item(options, controller))) continue;
    const std::string& path = v2 ? v2_path : v1_path;
    if (!path.empty()) found.push_back({v2, root + unescape(mount), below(path, unescape(mounted))});
  }
  return found;
}

// Calls limit(folder, v2) for the process's group and all above it.
template <class Limit>
void for_each_group(const std::string& root, const std::string& controller, Limit limit) {
  for (Hierarchy& h : hierarchies(root, controller)) {
    for (;;) {
      limit(h.mount + h.path, h.v2);
      if (h.path.empty()) break;
      h.path.erase(h.path.rfind('/'));
    }
  }
}

// Reads a number; returns -1 where there is none: no file, "max", or v1's "-1".
int64_t read_number(const std::string& file) {
  std::ifstream in(file);
  int64_t value;
  return in >> value ? value : -1;
}

int64_t cached_files(const std::string& folder, bool v2) {
  // In v1, numbers without "total_" leave out the groups below, which the usage includes.
  const std::string mark = v2 ? "" : "total_";
  std::ifstream in(folder + "/memory.stat");
  int64_t sum = 0, value;
  for (std::string name; in >> name >> value;)
    if (name == mark + "active_file" || name == mark + "inactive_file") sum += value;
  return sum;
}

}  // namespace

int64_t cgroup_free_memory(const std::string& root) {
  int64_t free = INT64_MAX;
  for_each_group(root, "memory", [&](const std::string& folder, bool v2) {
    int64_t limit = INT64_MAX;
    // memory.high counts as a limit too: beyond it a process is not killed, but slowed down until it makes no progress.
    for (const char* name : {"memory.max", "memory.high", "memory.limit_in_bytes"})
      if (const int64_t value = read_number(folder + "/" + name); value >= 0) limit = std::min(limit, value);
    const int64_t used = read_number(folder + (v2 ? "/memory.current" : "/memory.usage_in_bytes"));
    if (limit == INT64_MAX || used < 0) return;
    free = std::min(free, std::max<int64_t>(0, limit - std::max<int64_t>(0, used - cached_files(folder, v2))));
  });
  return free;
}

double cgroup_cpu_quota(const std::string& root) {
  double cores = 0;
  for_each_group(root, "cpu", [&](const std::string& folder, bool v2) {
    int64_t quota = -1, period = -1;
    if (v2) {
      std::ifstream in(folder + "/cpu.max");  // "max 100000" where there is no quota
      if (!(in >> quota >> period)) return;
    } else {
      quota = read_number(folder + "/cpu.cfs_quota_us"), period = read_number(folder + "/cpu.cfs_period_us");
    }
    if (quota <= 0 || period <= 0) return;
    const double here = double(quota) / double(period);
    cores = cores > 0 ? std::min(cores, here) : here;
  });
  return cores;
}

std::string cgroup_cpuset(const std::string& root) {
  std::string cpus;
  // The nearest group with the controller counts: its effective CPUs are those that the groups above leave to it.
  for_each_group(root, "cpuset", [&](const std::string& folder, bool v2) {
    for (const char* name : {v2 ? "cpuset.cpus.effective" : "cpuset.effective_cpus", "cpuset.cpus"}) {
      std::ifstream in(folder + "/" + name);
      if (cpus.empty()) std::getline(in, cpus);
    }
  });
  return cpus;
}

}  // namespace lynx_rt
