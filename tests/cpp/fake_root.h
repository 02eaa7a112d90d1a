// A folder with made-up /proc and /sys trees like those of kernels and containers.
#pragma once
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "temp_folder.h"

struct FakeRoot {
  explicit FakeRoot(const std::vector<std::pair<std::string, std::string>>& files = {}) {
    for (const auto& [name, text] : files) write(name, text);
  }
  // The control groups of the process, and the mounts besides /proc.
  FakeRoot(const std::string& groups, const std::string& mounts, const std::vector<std::pair<std::string, std::string>>& files)
      : FakeRoot(files) {
    write("proc/self/cgroup", groups);
    write("proc/self/mountinfo", "22 1 0:20 / /proc rw - proc proc rw\n" + mounts);
  }
  void write(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories(std::filesystem::path(folder.path(name)).parent_path());
    folder.write(name, text);
  }
  std::string path() const { return folder.path(); }
  TempFolder folder;
};
