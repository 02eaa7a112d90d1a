#include "base/fork.h"

#include <pthread.h>

#include <atomic>

#include "base/error.h"

namespace lynx_rt {

namespace {

std::atomic<uint64_t> forks = 0;  // number of forks between the first process that had a ForkGuard and this one

// Forks are counted because comparing process ids would take a system call per check.
bool count_forks() {
  static const bool counting = pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); }) == 0;
  return counting;
}

}  // namespace

ForkGuard::ForkGuard() {
  if (!count_forks()) fail(ErrorCode::kOutOfMemory, "", "pthread_atfork: out of memory");
  forks_ = forks.load(std::memory_order_relaxed);
}

bool ForkGuard::forked() const { return forks.load(std::memory_order_relaxed) != forks_; }

void ForkGuard::check(const char* what) const {
  if (forked())
    fail(ErrorCode::kClosed, "", what, " was made before fork(), and its threads do not exist in this process: make it after ",
         "fork(), or start processes by \"spawn\"");
}

}  // namespace lynx_rt
