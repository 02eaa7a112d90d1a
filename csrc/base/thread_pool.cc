#include "base/thread_pool.h"

#include <chrono>

#include "base/error.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lynx_rt {

namespace {
// Workers spin this long before they sleep. It covers the gap between two loops of one step; in a longer gap the engine is idle,
// and an idle server must not burn cores.
constexpr auto kSpin = std::chrono::microseconds(200);

constexpr uint64_t kInside = 0x7fffffff, kClosed = 0x80000000;
constexpr uint64_t loop_number(uint64_t gate) { return gate >> 32; }

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#else
  std::this_thread::yield();
#endif
}
}  // namespace

ThreadPool::ThreadPool(int num_threads) : ThreadPool(ThreadPlan{.num_threads = num_threads}) {}

ThreadPool::ThreadPool(const ThreadPlan& plan, CpuCalls& calls) : gate_(kClosed) {
  if (plan.num_threads < 1 || plan.num_threads > 4096) invalid("num_threads", "expected 1..4096, got ", plan.num_threads);
  const auto shared = std::make_shared<const ThreadPlan>(plan);
  for (int t = 1; t < plan.num_threads; ++t)
    workers_->threads.emplace_back([this, t, shared, &calls] {
      apply_plan(*shared, t, calls);
      worker_main(t);
    });
}

ThreadPool::~ThreadPool() {
  if (fork_guard_.forked()) {
    // The child of a fork() leaks the workers: threads that do not exist cannot be joined, and destroying the condition variable
    // would wait for them.
    static_cast<void>(workers_.release());
    return;
  }
  {
    std::lock_guard lock(workers_->mutex);
    stop_.store(true);
  }
  workers_->wake.notify_all();
  for (auto& w : workers_->threads) w.join();
}

// Takes tasks of the loop in progress: returns their number, 0 if none is left.
int64_t ThreadPool::take(int64_t* begin) {
  if (share_ == 0) {
    *begin = next_.fetch_add(1, std::memory_order_relaxed);
    return *begin < num_tasks_;
  }
  int64_t count;
  *begin = next_.load(std::memory_order_relaxed);
  do {
    count = (num_tasks_ - *begin + share_ - 1) / share_;
  } while (count > 0 && !next_.compare_exchange_weak(*begin, *begin + count, std::memory_order_relaxed));
  return count;
}

void ThreadPool::work(int thread) {
  int64_t begin;
  while (const int64_t count = take(&begin))
    for (int64_t i = 0; i < count; ++i) fn_(ctx_, begin + i, thread);
}

void ThreadPool::run(int64_t num_tasks, TaskFn fn, void* ctx, int64_t share) {
  fork_guard_.check("the thread pool");
  if (num_tasks <= 0) return;
  if (workers_->threads.empty() || num_tasks == 1) {
    for (int64_t i = 0; i < num_tasks; ++i) fn(ctx, i, 0);
    return;
  }
  fn_ = fn;
  ctx_ = ctx;
  num_tasks_ = num_tasks;
  share_ = share;
  next_.store(0, std::memory_order_relaxed);
  bool notify;
  {
    std::lock_guard lock(workers_->mutex);
    gate_.store((loop_number(gate_.load(std::memory_order_relaxed)) + 1) << 32, std::memory_order_release);
    notify = workers_->sleepers > 0;
  }
  if (notify) workers_->wake.notify_all();
  work(0);
  gate_.fetch_or(kClosed, std::memory_order_relaxed);
  for (int spins = 0; (gate_.load(std::memory_order_acquire) & kInside) != 0; ++spins) {
    if (spins < 4096)
      relax();
    else
      std::this_thread::yield();
  }
}

void ThreadPool::worker_main(int thread) {
  uint64_t seen = 0;
  auto idle_since = std::chrono::steady_clock::now();
  for (int i = 1; !stop_.load(std::memory_order_relaxed); ++i) {
    uint64_t gate = gate_.load(std::memory_order_acquire);
    if (loop_number(gate) != seen) {
      seen = loop_number(gate);
      bool inside = false;
      while (loop_number(gate) == seen && !(gate & kClosed) && !inside)
        inside = gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acquire);
      if (inside) {
        work(thread);
        gate_.fetch_sub(1, std::memory_order_release);
      }
      idle_since = std::chrono::steady_clock::now();
      continue;
    }
    relax();
    if (i % 64 != 0 || std::chrono::steady_clock::now() - idle_since < kSpin) continue;
    std::unique_lock lock(workers_->mutex);
    ++workers_->sleepers;
    workers_->wake.wait(lock, [&] { return stop_.load() || loop_number(gate_.load()) != seen; });
    --workers_->sleepers;
    idle_since = std::chrono::steady_clock::now();
  }
}

}  // namespace lynx_rt
