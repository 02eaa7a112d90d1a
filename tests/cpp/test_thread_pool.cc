// Tests csrc/base/thread_pool.h: every task runs once, with any number of threads and tasks.
#include "base/thread_pool.h"

#include <sched.h>

#include <chrono>
#include <ctime>
#include <thread>

#include "base/cpu_topology.h"
#include "check.h"

using namespace lynx_rt;

namespace {

void test_every_task_once() {
  for (int threads = 1; threads <= 5; ++threads) {
    ThreadPool pool(threads);
    CHECK_EQ(pool.num_threads(), threads);
    for (int64_t tasks : {0, 1, 2, 3, 4, 5, 7, 64, 1000}) {
      std::vector<std::atomic<int>> runs(size_t(tasks) + 1);
      std::atomic<int> bad_thread = 0;
      pool.parallel_for(tasks, [&](int64_t task, int thread) {
        if (thread < 0 || thread >= threads) ++bad_thread;
        ++runs[size_t(task)];
      });
      bool once = true;
      for (int64_t i = 0; i < tasks; ++i) once &= runs[size_t(i)] == 1;
      CHECK(once);
      CHECK_EQ(runs.back().load(), 0);
      CHECK_EQ(bad_thread.load(), 0);
    }
  }
}

// No two threads have the same number during a loop, so that per-thread scratch needs no lock.
void test_thread_number_is_exclusive() {
  ThreadPool pool(4);
  std::vector<std::atomic<int>> inside(4);
  std::atomic<int> clashes = 0;
  pool.parallel_for(2000, [&](int64_t, int thread) {
    if (inside[size_t(thread)].exchange(1) != 0) ++clashes;
    inside[size_t(thread)] = 0;
  });
  CHECK_EQ(clashes.load(), 0);
}

// Writes in a loop are visible after it, and writes before a loop are visible in it, without atomics.
void test_results_are_visible() {
  for (int threads : {2, 5}) {
    ThreadPool pool(threads);
    std::vector<int64_t> values(257, 0);
    for (int64_t round = 0; round < 10000; ++round)
      pool.parallel_for(round % 5 == 0 ? 257 : 3, [&](int64_t task, int) { values[size_t(task)] += task + 1; });
    bool right = true;
    for (int64_t i = 0; i < 257; ++i) right &= values[size_t(i)] == (i + 1) * (i < 3 ? 10000 : 2000);
    CHECK(right);
  }
}

void test_wakes_sleepers() {
  ThreadPool pool(3);
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // longer than workers spin
    std::atomic<int64_t> sum = 0;
    pool.parallel_for(100, [&](int64_t task, int) { sum += task; });
    CHECK_EQ(sum.load(), 4950);
  }
}

double process_cpu_seconds() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

// Workers spin for 200 us after a loop, then sleep until the next.
void test_idle_pool_uses_no_cpu() {
  ThreadPool pool(4);
  pool.parallel_for(100, [](int64_t, int) {});
  const double before = process_cpu_seconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  CHECK(process_cpu_seconds() - before < 0.02);
}

void test_usable_cores_respects_affinity() {
  cpu_set_t all, one;
  CHECK_EQ(sched_getaffinity(0, sizeof all, &all), 0);
  CHECK(usable_cores() >= 1 && usable_cores() <= CPU_COUNT(&all));
  CPU_ZERO(&one);
  for (int cpu = 0; CPU_COUNT(&one) == 0; ++cpu)
    if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &one);
  CHECK_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  CHECK_EQ(usable_cores(), 1);
  sched_setaffinity(0, sizeof all, &all);
}

void test_create_and_destroy() {
  for (int i = 0; i < 200; ++i) {
    ThreadPool pool(1 + i % 5);
    if (i % 3 == 0) pool.parallel_for(2, [](int64_t, int) {});
  }
  CHECK_THROWS(ThreadPool(0), ErrorCode::kInvalidArgument, "num_threads", {"1..4096", "got 0"});
  CHECK_THROWS(ThreadPool(5000), ErrorCode::kInvalidArgument, "num_threads", {"1..4096", "got 5000"});
}

}  // namespace

int main() {
  test_every_task_once();
  test_thread_number_is_exclusive();
  test_results_are_visible();
  test_wakes_sleepers();
  test_idle_pool_uses_no_cpu();
  test_usable_cores_respects_affinity();
  test_create_and_destroy();
  return check::result("test_thread_pool");
}
