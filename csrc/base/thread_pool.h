// A fixed pool of threads for data-parallel loops. One loop runs at a time.
// Thread-safety: parallel_for may be called from one thread at a time. The child of a fork() may only destroy a pool.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "base/fork.h"
#include "base/thread_plan.h"

namespace lynx_rt {

class ThreadPool {
 public:
  // Thread 0 is the calling one. Its number of threads is at least 1.
  explicit ThreadPool(const ThreadPlan& plan, CpuCalls& calls = CpuCalls::system());
  explicit ThreadPool(int num_threads);  // anywhere
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return int(workers_->threads.size()) + 1; }

  // Calls fn(task, thread) once for every task in [0, num_tasks), thread in [0, num_threads()); returns when all
  // are done. Tasks are handed out in rising order; which thread runs one is not fixed, so fn must not let its
  // result depend on it. fn must not throw. Throws kClosed in the child of a fork().
  template <class Fn>
  void parallel_for(int64_t num_tasks, Fn&& fn) {
    run(num_tasks, call<Fn>, const_cast<void*>(static_cast<const void*>(&fn)), 0);
  }

  // Is parallel_for() for tasks of about one size whose data are neighbours in memory: a thread takes several tasks at a time that follow each
  // other, fewer as they run out, so that after a task it mostly runs the next one.
  template <class Fn>
  void parallel_runs(int64_t num_tasks, Fn&& fn) {
    run(num_tasks, call<Fn>, const_cast<void*>(static_cast<const void*>(&fn)), 4 * num_threads());
  }

 private:
  using TaskFn = void (*)(void* ctx, int64_t task, int thread);
  template <class Fn>
  static void call(void* ctx, int64_t task, int thread) {
    (*static_cast<std::remove_reference_t<Fn>*>(ctx))(task, thread);
  }
  // A thread takes the share 1 / `share` of the tasks that are left at a time; 0: one task.
  void run(int64_t num_tasks, TaskFn fn, void* ctx, int64_t share);
  int64_t take(int64_t* begin);
  void work(int thread);
  void worker_main(int thread);

  struct Workers {
    std::vector<std::thread> threads;
    std::mutex mutex;
    std::condition_variable wake;
    int sleepers = 0;  // guarded by mutex
  };
  std::unique_ptr<Workers> workers_ = std::make_unique<Workers>();
  ForkGuard fork_guard_;
  // The loop in progress: written while no worker is inside the gate, read by the workers inside.
  TaskFn fn_ = nullptr;
  void* ctx_ = nullptr;
  int64_t num_tasks_ = 0, share_ = 0;
  // The gate of the loop: the loop's number, whether the gate is closed, and how many workers are inside. The caller closes it
  // when no task is left, and waits only for the workers inside; a worker that comes late, because it slept or was not on a core,
  // finds the gate closed and delays nobody.
  alignas(64) std::atomic<uint64_t> gate_;
  alignas(64) std::atomic<int64_t> next_{0};
  std::atomic<bool> stop_{false};
};

}  // namespace lynx_rt
