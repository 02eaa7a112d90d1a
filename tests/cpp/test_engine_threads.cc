// Five threads call all functions of one engine at random, under ThreadSanitizer. Usage: test_engine_threads MODEL_FOLDER
//
// In any order, a request that asks for the model's own routing must get the tokens that it gets alone, all others must end or be
// aborted, no output may come after an abort, and no memory may stay in use.
#include <chrono>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include "check.h"
#include "lynx_rt/engine.h"

using namespace lynx_rt;

namespace {

constexpr int kThreads = 5, kCalls = 60;
using Ids = std::vector<int32_t>;

EngineOptions options() {
  EngineOptions o;
  o.device = "cpu";
  o.num_threads = 2;
  o.max_num_seqs = 4;  // further requests wait
  o.max_model_len = 64;
  o.max_num_batched_tokens = 24;  // longer prompts are split in chunks
  o.kv_cache_memory_bytes = 1 << 20;
  o.enable_return_routed_experts = o.record_router_logits = true;
  return o;
}

// Returns a prompt. Prompts share beginnings, so that pages are shared as well.
Ids prompt(int kind) {
  Ids ids(size_t(3 + 9 * kind), 20);
  ids.back() = 30 + kind;
  return ids;
}

SamplingParams params(int kind) {
  SamplingParams p;
  p.temperature = kind % 2 ? 0.8f : 0;
  p.seed = uint64_t(kind);
  p.max_tokens = 4 + kind;
  p.ignore_eos = p.exact = true;
  return p;
}

constexpr int kKinds = 4;

class Stress {
 public:
  explicit Stress(const std::string& model) : engine_(Engine::create(model, options())) {
    for (int kind = 0; kind < kKinds; ++kind) {
      engine_->add_request(prompt(kind), params(kind));
      Ids& tokens = alone_.emplace_back();
      while (engine_->has_unfinished())
        for (const StepOutput& out : engine_->step()) tokens.insert(tokens.end(), out.token_ids.begin(), out.token_ids.end());
      CHECK_EQ(tokens.size(), size_t(params(kind).max_tokens));
    }
  }

  void run() {
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; ++i) threads.emplace_back([this, i] { live(i); });
    for (std::thread& t : threads) t.join();
    while (engine_->has_unfinished()) step();
    engine_->check_integrity();
    const EngineStats stats = engine_->stats();
    CHECK_EQ(stats.num_running + stats.num_waiting + stats.kv_blocks_used, 0);
    CHECK(!requests_.empty());
    int64_t whole = 0;
    for (const auto& [id, request] : requests_) {
      CHECK(request.ended != request.aborted);
      if (!request.ended) continue;
      ++whole;
      if (request.exact) CHECK_EQ(request.tokens, alone_[size_t(request.kind)]);
    }
    CHECK(whole > 0);
    CHECK_EQ(late_, 0);
  }

 private:
  struct Request {
    int kind = 0;
    bool exact = true, aborted = false, ended = false;
    Ids tokens;
  };

  // A step may deliver an output before add() has made the request's entry, so outputs make it as well.
  void step() {
    engine_->step([this](const StepOutput& out) {
      std::lock_guard lock(mutex_);
      Request& r = requests_[out.request_id];
      late_ += r.aborted;
      r.tokens.insert(r.tokens.end(), out.token_ids.begin(), out.token_ids.end());
      r.ended |= out.finish_reason != FinishReason::kNone;
    });
  }

  uint64_t add(int kind, bool exact) {
    SamplingParams p = params(kind);
    p.exact = exact;
    const uint64_t id = engine_->add_request(prompt(kind), p);
    std::lock_guard lock(mutex_);
    requests_[id].kind = kind;
    requests_[id].exact = exact;
    return id;
  }

  void live(int seed) {
    std::mt19937 random{uint32_t(seed)};
    const auto below = [&](int n) { return int(random() % uint32_t(n)); };
    std::vector<uint64_t> own;
    for (int call = 0; call < kCalls; ++call) {
      std::this_thread::sleep_for(std::chrono::microseconds(below(1000)));  // lets other threads run between two calls
      switch (below(9)) {
        case 0:
        case 1: own.push_back(add(below(kKinds), below(2) == 0)); break;
        case 2:
        case 3:
        case 4: step(); break;
        case 5:
          if (!own.empty()) {
            const uint64_t id = own[size_t(below(int(own.size())))];
            const bool dropped = engine_->abort(id);
            std::lock_guard lock(mutex_);
            if (dropped) requests_[id].aborted = true;
          }
          break;
        case 6: engine_->set_expert_selection(below(2) ? "lynx" : "topk"); break;
        case 7:
          engine_->stats();
          engine_->expert_selection();
          engine_->model_info();
          if (below(4) == 0) engine_->take_router_logits();
          break;
        case 8:
          if (!engine_->has_unfinished()) engine_->wake();
          engine_->wait_for_work(1);
          break;
      }
    }
  }

  std::unique_ptr<Engine> engine_;
  std::vector<Ids> alone_;
  std::mutex mutex_;  // guards the members below
  std::map<uint64_t, Request> requests_;
  int late_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  Stress(argv[1]).run();
  return check::result("test_engine_threads");
}
