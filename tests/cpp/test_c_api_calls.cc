// Tests lynx_rt.h: calls inside callbacks, abort, waiting, closing, threads. Usage: test_c_api_calls MODEL_FOLDER
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>

#include "c_api_client.h"

namespace {

using Ids = std::vector<uint64_t>;

Ids add_some(lynx_rt_engine* engine, int count, int32_t max_tokens = 100) {
  Ids ids;
  for (int32_t i = 0; i < count; ++i) ids.push_back(add(engine, with_max_tokens(max_tokens), {1, 20 + i}));
  return ids;
}

// Steps once. Returns the ids of the outputs, in order.
Ids step_ids(lynx_rt_engine* engine, const std::function<void(uint64_t)>& then = [](uint64_t) {}) {
  Ids ids;
  CHECK_OK(step(engine, [&](const lynx_rt_output& o) {
    ids.push_back(o.request_id);
    then(o.request_id);
  }));
  return ids;
}

void test_abort_from_a_callback(const char* model) {
  OwnedEngine engine(model);
  const Ids ids = add_some(engine, 4);
  CHECK_EQ(step_ids(engine), ids);
  // The first request's callback aborts itself and the third request, for which the same step has an output.
  CHECK_EQ(step_ids(engine,
                    [&](uint64_t id) {
                      if (id != ids[0]) return;
                      CHECK_OK(lynx_rt_abort(engine, ids[2]));
                      CHECK_OK(lynx_rt_abort(engine, ids[0]));
                      CHECK_EQ(int(lynx_rt_abort(engine, ids[2])), int(LYNX_RT_NOT_FOUND));
                      CHECK(last_error_has("unknown or finished"));
                    }),
           (Ids{ids[0], ids[1], ids[3]}));
  CHECK_EQ(step_ids(engine), (Ids{ids[1], ids[3]}));
  // A callback aborts a request whose output has been delivered.
  CHECK_EQ(step_ids(engine,
                    [&](uint64_t id) {
                      if (id == ids[3]) CHECK_OK(lynx_rt_abort(engine, ids[1]));
                    }),
           (Ids{ids[1], ids[3]}));
  CHECK_EQ(step_ids(engine, [&](uint64_t id) { CHECK_OK(lynx_rt_abort(engine, id)); }), Ids{ids[3]});
  CHECK_EQ(lynx_rt_has_unfinished(engine), 0);
  CHECK_OK(lynx_rt_check_integrity(engine));
}

// A request is unfinished until its last output is delivered: until then abort() succeeds, and that output never comes.
void test_abort_of_a_last_output(const char* model) {
  OwnedEngine engine(model);
  const Ids ids = add_some(engine, 3, 1);
  CHECK_EQ(step_ids(engine,
                    [&](uint64_t id) {
                      CHECK_EQ(int(lynx_rt_abort(engine, id)), int(LYNX_RT_NOT_FOUND));  // its last output is being delivered
                      CHECK_EQ(lynx_rt_has_unfinished(engine), id == ids[0]);
                      if (id == ids[0]) CHECK_OK(lynx_rt_abort(engine, ids[1]));
                    }),
           (Ids{ids[0], ids[2]}));
  CHECK_EQ(lynx_rt_has_unfinished(engine), 0);
  const Ids more = add_some(engine, 3, 1);
  CHECK_EQ(step_ids(engine,
                    [&](uint64_t id) {
                      for (uint64_t other : more)
                        if (other != id) CHECK_OK(lynx_rt_abort(engine, other));
                    }),
           Ids{more[0]});
  CHECK_EQ(lynx_rt_has_unfinished(engine), 0);
}

// An abort in another thread waits for the running callback of the request, and for no other callback.
void test_abort_from_another_thread(const char* model) {
  OwnedEngine engine(model);
  const Ids ids = add_some(engine, 3);
  std::atomic<bool> returned = false;
  std::thread aborter;
  CHECK_EQ(step_ids(engine,
                    [&](uint64_t id) {
                      if (id != ids[1]) return;
                      std::thread([&] { CHECK_OK(lynx_rt_abort(engine, ids[2])); }).join();
                      aborter = std::thread([&] {
                        CHECK_OK(lynx_rt_abort(engine, ids[1]));
                        returned = true;
                      });
                      const lynx_rt_stats* stats = nullptr;
                      for (int64_t aborted = 0; aborted < 2; lynx_rt_free_stats(stats)) {
                        stats = lynx_rt_get_stats(engine);
                        aborted = stats->aborted;
                      }
                      std::this_thread::sleep_for(std::chrono::milliseconds(20));
                      CHECK(!returned);
                    }),
           (Ids{ids[0], ids[1]}));
  aborter.join();
  CHECK_EQ(step_ids(engine), Ids{ids[0]});
}

void test_calls_from_a_callback(const char* model) {
  OwnedEngine engine(model);
  const Ids ids = add_some(engine, 2, 2);
  uint64_t added = 0;
  step_ids(engine, [&](uint64_t id) {
    if (id != ids[0]) return;
    CHECK_EQ(int(step(engine, [](const lynx_rt_output&) {})), int(LYNX_RT_INVALID_ARGUMENT));
    CHECK(last_error_has("callback"));
    lynx_rt_destroy(engine);
    CHECK(last_error_has("lynx_rt_step"));
    added = add(engine, with_max_tokens(1));
    CHECK_OK(lynx_rt_set_expert_selection(engine, "lynx"));
    CHECK_EQ(std::string(lynx_rt_expert_selection(engine)).substr(0, 4), "lynx");
    const lynx_rt_stats* stats = lynx_rt_get_stats(engine);
    CHECK_EQ(stats->num_waiting, 1);
    lynx_rt_free_stats(stats);
    CHECK_OK(lynx_rt_reset_stats(engine));
    CHECK(lynx_rt_get_model_info(engine) != nullptr);
    int has_work = 0;
    CHECK_OK(lynx_rt_wait_for_work(engine, -1, &has_work));
    CHECK_EQ(has_work, 1);
    CHECK_OK(lynx_rt_wake(engine));
    CHECK_OK(lynx_rt_check_integrity(engine));
  });
  std::set<uint64_t> seen;
  while (lynx_rt_has_unfinished(engine)) step_ids(engine, [&](uint64_t id) { seen.insert(id); });
  CHECK(seen.contains(added));
  // A step of another engine is no recursion.
  OwnedEngine other(model);
  add(engine, with_max_tokens(1));
  add(other, with_max_tokens(1));
  size_t others = 0;
  step_ids(engine, [&](uint64_t) { others += step_ids(other).size(); });
  CHECK_EQ(others, 1);
}

void test_throw_from_a_callback(const char* model) {
  OwnedEngine engine(model);
  const Ids ids = add_some(engine, 4, 1);
  Ids seen;
  const auto step_throwing = [&](auto what, uint64_t at) {
    return step(engine, [&](const lynx_rt_output& o) {
      seen.push_back(o.request_id);
      CHECK_EQ(o.num_tokens, 1);
      if (o.request_id == at) throw what;
    });
  };
  CHECK_EQ(int(step_throwing(std::runtime_error("the socket is gone"), ids[0])), int(LYNX_RT_INTERNAL));
  CHECK(last_error_has("callback") && last_error_has("the socket is gone"));
  CHECK_EQ(seen, Ids{ids[0]});
  CHECK_EQ(lynx_rt_has_unfinished(engine), 1);
  int has_work = 0;
  CHECK_OK(lynx_rt_wait_for_work(engine, 0, &has_work));
  CHECK_EQ(has_work, 1);
  CHECK_OK(lynx_rt_abort(engine, ids[2]));
  CHECK_EQ(int(step_throwing(7, ids[1])), int(LYNX_RT_INTERNAL));
  CHECK_EQ(int(step_throwing(7, 0)), int(LYNX_RT_OK));
  CHECK_EQ(seen, (Ids{ids[0], ids[1], ids[3]}));
  CHECK_EQ(lynx_rt_has_unfinished(engine), 0);
  // The outputs after a callback that throws are delivered before another step runs.
  const Ids more = add_some(engine, 2, 2);
  seen.clear();
  CHECK_EQ(int(step_throwing(7, more[0])), int(LYNX_RT_INTERNAL));
  CHECK_OK(step_throwing(7, 0));
  CHECK_OK(step_throwing(7, 0));
  CHECK_EQ(seen, (Ids{more[0], more[1], more[0], more[1]}));
}

// A callback may end its thread, as happens when an interpreter shuts down: later outputs of the step go to the next call.
void test_a_callback_that_ends_its_thread(const char* model) {
  OwnedEngine engine(model);
  const Ids ids = add_some(engine, 3, 1);
  std::thread([&] { lynx_rt_step(engine, [](const lynx_rt_output*, void*) { pthread_exit(nullptr); }, nullptr); }).join();
  CHECK_EQ(step_ids(engine), (Ids{ids[1], ids[2]}));
}

void test_wait(const char* model) {
  OwnedEngine engine(model);
  int has_work = 7;
  const auto start = std::chrono::steady_clock::now();
  CHECK_OK(lynx_rt_wait_for_work(engine, 20, &has_work));
  CHECK(std::chrono::steady_clock::now() - start >= std::chrono::milliseconds(20));
  CHECK_EQ(has_work, 0);
  CHECK_OK(lynx_rt_wait_for_work(engine, 0, nullptr));
  CHECK_OK(lynx_rt_wake(engine));  // no thread waits: the next wait ends at once, the one after it does not
  CHECK_OK(lynx_rt_wait_for_work(engine, INT64_MAX, &has_work));
  CHECK_EQ(has_work, 0);
  CHECK_OK(lynx_rt_wait_for_work(engine, 1, &has_work));
  CHECK_EQ(has_work, 0);

  // Waits without a limit are ended by wake(), by a request and by close().
  std::atomic<int> waits = 0;
  std::thread server([&] {
    while (true) {
      ++waits;
      const lynx_rt_status status = lynx_rt_wait_for_work(engine, -1, nullptr);
      if (status == LYNX_RT_CLOSED) return;
      CHECK_OK(status);
      if (lynx_rt_has_unfinished(engine)) step_ids(engine);
    }
  });
  const auto until = [&](auto holds) {
    for (int i = 0; i < 20000 && !holds(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    CHECK(holds());
  };
  until([&] { return waits == 1; });
  for (int i = 2; i < 6; ++i) {
    CHECK_OK(lynx_rt_wake(engine));
    until([&] { return waits == i; });
  }
  add(engine, with_max_tokens(3));
  until([&] { return waits == 8; });
  CHECK_EQ(lynx_rt_has_unfinished(engine), 0);
  CHECK_OK(lynx_rt_close(engine));
  server.join();
  CHECK_OK(lynx_rt_close(engine));
  CHECK_EQ(int(lynx_rt_wake(engine)), int(LYNX_RT_CLOSED));
  CHECK_EQ(int(step(engine, [](const lynx_rt_output&) {})), int(LYNX_RT_CLOSED));
  CHECK_EQ(lynx_rt_has_unfinished(engine), 0);
  CHECK(lynx_rt_get_stats(engine) == nullptr);
  CHECK_EQ(int(lynx_rt_last_status()), int(LYNX_RT_CLOSED));
}

// A child does not wait for what the parent's threads wait for.
void test_fork_beside_a_wait(const char* model) {
  OwnedEngine engine(model);
  std::atomic<bool> waits = false;
  std::thread waiter([&] {
    waits = true;
    CHECK_OK(lynx_rt_wait_for_work(engine, -1, nullptr));
  });
  while (!waits) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    const bool refused = lynx_rt_wake(engine) == LYNX_RT_CLOSED && lynx_rt_wait_for_work(engine, -1, nullptr) == LYNX_RT_CLOSED;
    lynx_rt_close(engine);
    lynx_rt_destroy(engine);
    _exit(refused ? 0 : 1);
  }
  int status = -1;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK_OK(lynx_rt_wake(engine));
  waiter.join();
}

void test_close_from_a_callback(const char* model) {
  OwnedEngine engine(model);
  const Ids ids = add_some(engine, 3);
  CHECK_EQ(step_ids(engine, [&](uint64_t) { CHECK_OK(lynx_rt_close(engine)); }), Ids{ids[0]});
}

// Threads that add, abort and step at once. No callback begins for a request once its abort has returned, outputs of a request come
// in order, and every request that was not aborted ends.
void test_threads(const char* model) {
  constexpr int kClients = 3, kRequests = 30;
  lynx_rt_options options = sized_options();
  options.num_threads = 1;
  options.max_model_len = 64;
  OwnedEngine engine(model, options);
  std::mutex mutex;  // guards the members below
  std::set<uint64_t> aborted;
  std::map<uint64_t, int32_t> lengths;
  std::set<uint64_t> ended;
  int late = 0, disordered = 0, dropped = 0;
  std::atomic<int> clients = kClients;

  const auto serve = [&] {
    while (clients > 0 || lynx_rt_has_unfinished(engine)) {
      CHECK_OK(lynx_rt_wait_for_work(engine, 10, nullptr));
      CHECK_OK(step(engine, [&](const lynx_rt_output& o) {
        {
          std::lock_guard lock(mutex);
          late += aborted.contains(o.request_id);
          disordered += o.token_ids[0] != 100 + lengths[o.request_id]++;
          if (o.finish != LYNX_RT_RUNNING) ended.insert(o.request_id);
        }
        std::this_thread::yield();  // lets clients run between the callbacks of a step
      }));
    }
  };
  const auto ask = [&] {
    std::vector<int32_t> forced;  // the i-th token identifies its position
    for (int32_t i = 0; i < 6; ++i) forced.push_back(100 + i);
    for (int i = 0; i < kRequests; ++i) {
      lynx_rt_params params = with_max_tokens(6);
      params.forced_token_ids = forced.data();
      params.num_forced_token_ids = forced.size();
      uint64_t id = 0;
      if (lynx_rt_add_request(engine, kPrompt.data(), kPrompt.size(), &params, &id) != LYNX_RT_OK) id = 0;
      if (i % 3 == 0) continue;
      for (int spins = 0; spins < i % 7; ++spins) lynx_rt_has_unfinished(engine);
      const lynx_rt_status status = lynx_rt_abort(engine, id);
      std::lock_guard lock(mutex);
      aborted.insert(id);  // whatever the status: no callback may come from now on
      dropped += status == LYNX_RT_OK;
    }
    --clients;
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) threads.emplace_back(serve);
  for (int i = 0; i < kClients; ++i) threads.emplace_back(ask);
  for (std::thread& t : threads) t.join();
  CHECK_EQ(late, 0);
  CHECK_EQ(disordered, 0);
  CHECK(dropped > 0);
  CHECK_EQ(ended.size() + size_t(dropped), kClients * kRequests);
  CHECK_OK(lynx_rt_check_integrity(engine));
  const lynx_rt_stats* stats = lynx_rt_get_stats(engine);
  CHECK_EQ(stats->finished + stats->aborted, kClients * kRequests);
  CHECK_EQ(stats->kv_blocks_used, 0);
  lynx_rt_free_stats(stats);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  test_abort_from_a_callback(argv[1]);
  test_abort_of_a_last_output(argv[1]);
  test_abort_from_another_thread(argv[1]);
  test_calls_from_a_callback(argv[1]);
  test_throw_from_a_callback(argv[1]);
  test_a_callback_that_ends_its_thread(argv[1]);
  test_wait(argv[1]);
  test_fork_beside_a_wait(argv[1]);
  test_close_from_a_callback(argv[1]);
  test_threads(argv[1]);
  return check::result("test_c_api_calls");
}
