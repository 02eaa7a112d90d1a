// The limits that control groups (cgroup v2 and v1) set for this process.
#pragma once
#include <cstdint>
#include <string>

namespace lynx_rt {

// Every group from the process's own up to the root of the hierarchy has limits; the tightest one counts. `root` is a prefix of
// /proc/self/cgroup, /proc/self/mountinfo and the mount points, for tests.

// Returns the bytes that the process may still allocate; INT64_MAX = no limit. Cached files count as free, since the kernel drops
// them when memory is short.
int64_t cgroup_free_memory(const std::string& root = "");

// Returns the CPU time per wall-clock time, in cores; 0 = no limit.
double cgroup_cpu_quota(const std::string& root = "");

// Returns the list of CPUs that the process's cpuset leaves to it, like "0-3,8"; empty = no limit.
std::string cgroup_cpuset(const std::string& root = "");

}  // namespace lynx_rt
