#include "base/thread_pool.h"

#include <chrono>

#include "base/error.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lynx_rt {

namespace {
// Spinning covers the gap between two loops of one step; a longer gap means that the engine idles, and an idle
// server must not burn a core.
constexpr auto kSpin = std::chrono::microseconds(200);

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}
}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  if (num_threads < 1 || num_threads > 4096)
    invalid("num_threads", "expected 1..4096, got ", num_threads);
  for (int t = 1; t < num_threads; ++t) workers_.emplace_back([this, t] { worker_main(t); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
    epoch_.fetch_add(1);
  }
  wake_.notify_all();
  for (auto& w : workers_) w.join();
}

void ThreadPool::work(int thread) {
  for (;;) {
    int64_t task = next_.fetch_add(1, std::memory_order_relaxed);
    if (task >= num_tasks_) return;
    fn_(ctx_, task, thread);
  }
}

void ThreadPool::run(int64_t num_tasks, TaskFn fn, void* ctx) {
  if (num_tasks <= 0) return;
  if (workers_.empty() || num_tasks == 1) {
    for (int64_t i = 0; i < num_tasks; ++i) fn(ctx, i, 0);
    return;
  }
  fn_ = fn;
  ctx_ = ctx;
  num_tasks_ = num_tasks;
  next_.store(0, std::memory_order_relaxed);
  running_.store(int(workers_.size()), std::memory_order_relaxed);
  bool notify;
  {
    std::lock_guard lock(mutex_);
    epoch_.fetch_add(1, std::memory_order_release);
    notify = sleepers_ > 0;
  }
  if (notify) wake_.notify_all();
  work(0);
  // Every worker must have left work() before the next loop may overwrite fn_ and next_.
  for (int spins = 0; running_.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins < 4096) relax();
    else std::this_thread::yield();
  }
}

void ThreadPool::worker_main(int thread) {
  uint64_t seen = 0;
  for (;;) {
    auto deadline = std::chrono::steady_clock::now() + kSpin;
    for (int i = 0; epoch_.load(std::memory_order_acquire) == seen; ++i) {
      relax();
      if ((i & 63) != 63 || std::chrono::steady_clock::now() < deadline) continue;
      std::unique_lock lock(mutex_);
      ++sleepers_;
      wake_.wait(lock, [&] { return epoch_.load(std::memory_order_acquire) != seen; });
      --sleepers_;
    }
    ++seen;
    if (stop_) return;
    work(thread);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace lynx_rt
