// Tests engine, C ABI and thread pool in the child of a fork(): the parent's objects throw at once and never hang, new objects work.
// Usage: test_fork MODEL_FOLDER
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <thread>

#include "base/thread_pool.h"
#include "check.h"
#include "lynx_rt/engine.h"
#include "lynx_rt/lynx_rt.h"

using namespace lynx_rt;

// Disables the leak check, because a child leaks its copy of the parent's engine on purpose.
extern "C" __attribute__((visibility("default"))) const char* __asan_default_options() { return "detect_leaks=0"; }

namespace {

constexpr unsigned kHangs = 60;  // seconds after which a child is taken to hang

std::unique_ptr<Engine> kept;  // destroyed at exit, in children as well

EngineOptions options() {
  EngineOptions o;
  o.device = "cpu";
  o.num_threads = 3;
  return o;
}

std::vector<int32_t> generate(Engine& engine) {
  SamplingParams params;
  params.temperature = 0;
  params.max_tokens = 8;
  params.ignore_eos = true;
  engine.add_request({1, 20, 21}, params);
  std::vector<int32_t> tokens;
  while (engine.has_unfinished())
    for (const StepOutput& out : engine.step()) tokens.insert(tokens.end(), out.token_ids.begin(), out.token_ids.end());
  return tokens;
}

// Runs `child` in a child process, which then exits like a program. Returns whether all of its checks held.
template <class Child>
bool in_child(Child child) {
  const pid_t pid = fork();
  if (pid == 0) {
    alarm(kHangs);
    const int before = check::failures;
    child();
    std::exit(check::failures == before ? 0 : 1);
  }
  int status = -1;
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

void test_engine_in_a_child(const std::string& model, const std::vector<int32_t>& expected) {
  CHECK(in_child([&] {
    const std::vector<std::string> says{"the engine was made before fork()", "make it after fork()", "spawn"};
    CHECK_THROWS(kept->add_request({1}, {}), ErrorCode::kClosed, "", says);
    CHECK_THROWS(kept->step(), ErrorCode::kClosed, "", says);
    CHECK_THROWS(kept->abort(1), ErrorCode::kClosed, "", says);
    CHECK_THROWS(kept->has_unfinished(), ErrorCode::kClosed, "", says);
    CHECK_THROWS(kept->stats(), ErrorCode::kClosed, "", says);
    CHECK_THROWS(kept->forward({1}), ErrorCode::kClosed, "", says);
    CHECK_THROWS(kept->set_expert_selection("lynx"), ErrorCode::kClosed, "", says);
    const auto own = Engine::create(model, options());
    CHECK(generate(*own) == expected);
    CHECK(in_child([&] { CHECK_THROWS(own->step(), ErrorCode::kClosed, "", says); }));
    kept->close();
    kept->close();
  }));
  CHECK(generate(*kept) == expected);
}

// Forks while locks are held and a step runs, which never ends in the child. This test does not run under AddressSanitizer: gcc 12's
// does not free the locks of its own allocator in a child, which then hangs at an allocation.
[[maybe_unused]] void test_fork_beside_a_step(const std::vector<int32_t>& expected) {
  std::atomic<bool> stop = false;
  std::atomic<int> wrong = 0;
  std::thread steps([&] {
    while (!stop) wrong += generate(*kept) != expected;
  });
  for (int i = 0; i < 10; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(i));
    CHECK(in_child([] {
      CHECK_THROWS(kept->step(), ErrorCode::kClosed, "", {"fork()"});
      if (getpid() % 2) kept->close();
    }));
  }
  stop = true;
  steps.join();
  CHECK_EQ(wrong.load(), 0);
}

void test_c_abi_in_a_child(const char* model) {
  lynx_rt_engine* engine = lynx_rt_create(model, nullptr);
  CHECK(engine != nullptr);
  const int32_t prompt[] = {1, 20};
  uint64_t id = 0;
  CHECK_EQ(int(lynx_rt_add_request(engine, prompt, 2, nullptr, &id)), int(LYNX_RT_OK));
  CHECK(in_child([&] {
    CHECK_EQ(lynx_rt_has_unfinished(engine), 0);
    CHECK_EQ(int(lynx_rt_add_request(engine, prompt, 2, nullptr, &id)), int(LYNX_RT_CLOSED));
    CHECK(std::string(lynx_rt_last_error()).find("made before fork()") != std::string::npos);
    CHECK_EQ(int(lynx_rt_abort(engine, id)), int(LYNX_RT_CLOSED));
    lynx_rt_destroy(engine);
  }));
  CHECK_EQ(lynx_rt_has_unfinished(engine), 1);
  lynx_rt_destroy(engine);
}

// Runs a loop in which every thread of the pool takes part, so that afterwards no thread is still starting. AddressSanitizer allocates
// in a starting thread, under a lock that a fork() at that time leaves locked in the child.
void start_all(ThreadPool& pool, int threads) {
  std::atomic<int> arrived = 0;
  pool.parallel_for(threads, [&](int64_t, int) {
    ++arrived;
    while (arrived < threads) std::this_thread::yield();
  });
}

void test_thread_pool_in_a_child() {
  for (int round = 0; round < 20; ++round) {
    auto pool = std::make_unique<ThreadPool>(4);
    start_all(*pool, 4);
    if (round % 2) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // by then the workers sleep
    CHECK(in_child([&] {
      CHECK_THROWS(pool->parallel_for(100, [](int64_t, int) {}), ErrorCode::kClosed, "", {"the thread pool", "fork()"});
      pool.reset();
      std::atomic<int> runs = 0;
      ThreadPool(3).parallel_for(100, [&](int64_t, int) { ++runs; });
      CHECK_EQ(runs.load(), 100);
    }));
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  test_thread_pool_in_a_child();
  kept = Engine::create(argv[1], options());
  const std::vector<int32_t> expected = generate(*kept);
  test_engine_in_a_child(argv[1], expected);
#if !defined(__SANITIZE_ADDRESS__)
  test_fork_beside_a_step(expected);
#endif
  test_c_abi_in_a_child(argv[1]);
  return check::result("test_fork");
}
