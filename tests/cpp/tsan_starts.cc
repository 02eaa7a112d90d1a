// A loop of the thread pool that counts. ThreadSanitizer must report nothing, but with the argument "race", where the counter is not
// atomic, it must report a race.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <string>
#include <thread>

#include "base/thread_pool.h"

constexpr int kThreads = 4;

// Every task waits for the others, so that each is in a thread of its own. The wait is relaxed, because it must not order the tasks.
template <class Counter>
int64_t count() {
  Counter counter{0};
  std::atomic<int> inside = 0;
  lynx_rt::ThreadPool(kThreads).parallel_for(kThreads, [&](int64_t, int) {
    inside.fetch_add(1, std::memory_order_relaxed);
    while (inside.load(std::memory_order_relaxed) < kThreads) std::this_thread::yield();
    counter += 1;
  });
  return counter;
}

int main(int argc, char** argv) {
  const bool race = argc > 1 && std::string(argv[1]) == "race";
  std::printf("%d\n", int(race ? count<int64_t>() : count<std::atomic<int64_t>>()));
}
