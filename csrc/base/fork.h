// Threads do not survive fork(), and a lock that one of them held stays locked: what has either must not be used by the child.
#pragma once
#include <cstdint>

namespace lynx_rt {

// A member of what has threads or locks. Thread-safety: immutable after construction.
class ForkGuard {
 public:
  ForkGuard();
  bool forked() const;                 // whether this process is a child, made by fork() after this object
  void check(const char* what) const;  // throws kClosed, saying what to do, where forked()

 private:
  uint64_t forks_;
};

}  // namespace lynx_rt
