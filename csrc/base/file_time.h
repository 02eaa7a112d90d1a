// When a file was changed last.
#pragma once
#include <sys/stat.h>

#include <cstdint>

namespace lynx_rt {

// Returns nanoseconds since 1970.
inline int64_t change_time(const struct stat& info) {
#if defined(__APPLE__)
  const timespec& changed = info.st_mtimespec;
#else
  const timespec& changed = info.st_mtim;
#endif
  return int64_t(changed.tv_sec) * 1000000000 + changed.tv_nsec;
}

}  // namespace lynx_rt
