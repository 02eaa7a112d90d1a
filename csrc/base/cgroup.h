// The limits that control groups (cgroup v2 and v1) set for this process.
#pragma once
#include <cstdint>
#include <string>

namespace lynx_rt {

// Every group from the process's own up to the root of the hierarchy has its limits; the tightest one counts. `root` stands before
// /proc/self/cgroup, /proc/self/mountinfo and the mount points, for tests.

// Bytes that the process may still take; cached files count as free, since they are given back when memory is short. INT64_MAX =
// no limit.
int64_t cgroup_free_memory(const std::string& root = "");

// CPU time per time, in cores; 0 = no limit.
double cgroup_cpu_quota(const std::string& root = "");

}  // namespace lynx_rt
