// Protects objects with threads or locks after fork(): threads do not exist in the child, and a lock that one of them held stays
// locked there, so the child must not use such an object.
#pragma once
#include <cstdint>

namespace lynx_rt {

// A member of objects that have threads or locks. Thread-safety: immutable after construction.
class ForkGuard {
 public:
  ForkGuard();
  bool forked() const;                 // whether this process was made by fork() after this object
  void check(const char* what) const;  // throws kClosed, saying what to do, where forked()

 private:
  uint64_t forks_;
};

}  // namespace lynx_rt
