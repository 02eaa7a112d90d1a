#include "lynx_rt/engine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "base/fork.h"
#include "engine/engine_core.h"

namespace lynx_rt {

struct Engine::Impl {
  std::function<void(LogLevel, const std::string&)> on_log;
  std::mutex turn;  // held through a step and the callbacks for its outputs; taken before `mutex`
  std::atomic<std::thread::id> stepping;
  std::atomic<double> last_step_time = 0, step_start_time = 0;  // read without a lock

  mutable std::mutex mutex;          // guards the members below
  std::unique_ptr<EngineCore> core;  // null after close()
  std::vector<StepOutput> outputs;   // of the last step(on_output); those from num_delivered on are not yet delivered
  size_t num_delivered = 0;
  uint64_t delivering = 0;  // the request whose callback runs; 0 = none
  std::condition_variable delivered;
  int64_t preemptions_logged = 0;
  std::condition_variable changed;  // for wait_for_work()
  int64_t num_waiting = 0;
  uint64_t num_wakes = 0;
  bool wake_next = false;

  ForkGuard fork_guard;

  std::unique_lock<std::mutex> lock() const {
    fork_guard.check("the engine");  // before locking: in a child, a thread of the parent may hold the lock
    return std::unique_lock(mutex);
  }

  // Returns the core; throws kClosed after close(). The caller holds the lock.
  EngineCore& locked_core() const {
    if (!core) fail(ErrorCode::kClosed, "", "the engine has been closed");
    return *core;
  }
  bool has_unfinished() const { return num_delivered < outputs.size() || locked_core().has_unfinished(); }

  // Gives access to the core, under the lock until the end of the statement.
  class Open {
   public:
    explicit Open(const Impl& impl) : lock_(impl.lock()), core_(&impl.locked_core()) {}
    EngineCore* operator->() const { return core_; }

   private:
    std::unique_lock<std::mutex> lock_;
    EngineCore* core_;
  };
  Open open() const { return Open(*this); }

  void log(LogLevel level, const std::string& text) const {
    if (on_log) on_log(level, text);
  }

  // Holds the time at which a step began, as long as the step runs.
  class InProgress {
   public:
    explicit InProgress(std::atomic<double>& start) : start_(start) { start_ = now(); }
    ~InProgress() { start_ = 0; }

   private:
    std::atomic<double>& start_;
  };

  // Runs a step, unless outputs of the last one are still to be delivered.
  void run_step() {
    std::vector<std::string> warnings;
    {
      const auto held = lock();
      if (num_delivered < outputs.size()) return;
      outputs.clear();
      num_delivered = 0;
      EngineCore& core = locked_core();
      const InProgress in_progress(step_start_time);
      outputs = core.step();
      last_step_time = now();
      if (on_log) warnings = find_warnings();
    }
    for (const std::string& text : warnings) log(LogLevel::kWarning, text);
  }

  std::vector<std::string> find_warnings() {
    std::vector<std::string> found;
    for (const StepOutput& out : outputs)
      if (out.finish_reason == FinishReason::kError) found.push_back(str_cat("request ", out.request_id, " ended: ", out.error));
    if (const int64_t count = core->num_preemptions(); count != preemptions_logged) {
      found.push_back(str_cat("KV cache full: ", count - preemptions_logged, " running requests were preempted, ", count,
                              " so far; each computes its tokens again (kv_cache_memory_bytes, max_num_seqs)"));
      preemptions_logged = count;
    }
    return found;
  }
};

namespace {

// A thread's turn to step: one thread has it at a time.
class Turn {
 public:
  Turn(std::mutex& mutex, std::atomic<std::thread::id>& stepping) : stepping_(stepping) {
    if (stepping == std::this_thread::get_id())
      invalid("step", "expected a call from outside of step(), got one from a callback for its outputs");
    lock_ = std::unique_lock(mutex);
    stepping_ = std::this_thread::get_id();
  }
  ~Turn() { stepping_ = std::thread::id(); }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  std::atomic<std::thread::id>& stepping_;
  std::unique_lock<std::mutex> lock_;
};

// Takes the next output, and marks its callback as running as long as the object lives.
template <class Impl>
class Delivery {
 public:
  explicit Delivery(Impl& impl) : impl_(impl) {
    const auto held = impl.lock();
    if (impl.num_delivered == impl.outputs.size()) return;
    output_ = std::move(impl.outputs[impl.num_delivered++]);
    impl.delivering = output_->request_id;
  }
  ~Delivery() {
    if (impl_.fork_guard.forked()) return;  // the callback forked, and this is the child
    std::lock_guard lock(impl_.mutex);
    impl_.delivering = 0;
    impl_.delivered.notify_all();
  }
  Delivery(const Delivery&) = delete;
  Delivery& operator=(const Delivery&) = delete;

  const std::optional<StepOutput>& output() const { return output_; }  // absent where no output is left

 private:
  Impl& impl_;
  std::optional<StepOutput> output_;
};

constexpr int64_t kMaxWaitMs = int64_t(365) * 24 * 3600 * 1000;  // cannot overflow when added to a time

std::string describe(const ModelInfo& i, int64_t kv_tokens) {
  return str_cat(i.model_type, " in ", i.dtype, " on ", i.device, ": ", i.weight_bytes, " bytes of weights, ", i.kv_bytes,
                 " of KV cache (", kv_tokens, " tokens), ", i.workspace_bytes, " of workspace; max_model_len ", i.max_model_len);
}

}  // namespace

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

// In the child of a fork() nothing is freed: the core may be in the middle of a step, its pages are shared with the parent, and
// destroying a condition variable would wait for threads that exist in the parent only.
Engine::~Engine() {
  if (impl_->fork_guard.forked()) static_cast<void>(impl_.release());
}

std::unique_ptr<Engine> Engine::create(const std::string& path, const EngineOptions& options) {
  auto impl = std::make_unique<Impl>();
  impl->on_log = options.on_log;
  impl->core = std::make_unique<EngineCore>(path, options);
  if (options.on_log) {
    const ModelInfo info = impl->core->model_info();
    impl->log(LogLevel::kInfo, describe(info, impl->core->num_kv_tokens()));
    for (const std::string& text : info.warnings) impl->log(LogLevel::kWarning, text);
    if (options.max_model_len == 0 && info.max_model_len < info.max_position_embeddings)
      impl->log(LogLevel::kWarning, str_cat("max_model_len is ", info.max_model_len, " instead of the model's ",
                                            info.max_position_embeddings, ": the KV cache holds no more"));
  }
  return std::unique_ptr<Engine>(new Engine(std::move(impl)));
}

uint64_t Engine::add_request(std::vector<int32_t> prompt_token_ids, const SamplingParams& params, TokenMask token_mask,
                             std::vector<ImageInput> images) {
  const auto held = impl_->lock();
  const uint64_t id = impl_->locked_core().add(std::move(prompt_token_ids), params, std::move(token_mask), std::move(images));
  impl_->changed.notify_all();
  return id;
}

std::vector<StepOutput> Engine::step() {
  impl_->fork_guard.check("the engine");
  const Turn turn(impl_->turn, impl_->stepping);
  impl_->run_step();
  const auto held = impl_->lock();
  impl_->outputs.erase(impl_->outputs.begin(), impl_->outputs.begin() + int64_t(std::exchange(impl_->num_delivered, 0)));
  return std::exchange(impl_->outputs, {});
}

void Engine::step(const std::function<void(const StepOutput&)>& on_output) {
  impl_->fork_guard.check("the engine");
  const Turn turn(impl_->turn, impl_->stepping);
  impl_->run_step();
  while (true) {
    const Delivery<Impl> delivery(*impl_);
    if (!delivery.output()) return;
    on_output(*delivery.output());
  }
}

bool Engine::in_step() const { return impl_->stepping == std::this_thread::get_id(); }

bool Engine::abort(uint64_t request_id) {
  auto held = impl_->lock();
  const bool running = impl_->locked_core().abort(request_id);
  const auto waiting = impl_->outputs.begin() + int64_t(impl_->num_delivered);
  const auto kept =
      std::remove_if(waiting, impl_->outputs.end(), [&](const StepOutput& o) { return o.request_id == request_id; });
  const bool dropped = kept != impl_->outputs.end();
  impl_->outputs.erase(kept, impl_->outputs.end());
  if (!in_step()) impl_->delivered.wait(held, [&] { return impl_->delivering != request_id; });
  return running || dropped;
}

bool Engine::has_unfinished() const {
  const auto held = impl_->lock();
  return impl_->has_unfinished();
}

bool Engine::wait_for_work(int64_t timeout_ms) {
  auto held = impl_->lock();
  const uint64_t wakes = impl_->num_wakes;
  const auto over = [&] { return !impl_->core || impl_->has_unfinished() || impl_->wake_next || impl_->num_wakes != wakes; };
  ++impl_->num_waiting;
  if (timeout_ms < 0 || timeout_ms > kMaxWaitMs) {
    impl_->changed.wait(held, over);
  } else {
    impl_->changed.wait_for(held, std::chrono::milliseconds(timeout_ms), over);
  }
  --impl_->num_waiting;
  impl_->wake_next = false;
  return impl_->has_unfinished();
}

void Engine::wake() {
  const auto held = impl_->lock();
  impl_->locked_core();
  if (impl_->num_waiting > 0) {
    ++impl_->num_wakes;
  } else {
    impl_->wake_next = true;
  }
  impl_->changed.notify_all();
}

void Engine::set_expert_selection(const std::string& selection) {
  impl_->open()->set_selection(selection);
  impl_->log(LogLevel::kInfo, str_cat("expert selection: ", selection));
}

std::string Engine::expert_selection() const { return impl_->open()->selection(); }

double Engine::last_step_time() const { return impl_->last_step_time; }

double Engine::step_start_time() const { return impl_->step_start_time; }

EngineStats Engine::stats() const { return impl_->open()->stats(); }

ExpertCounts Engine::expert_counts() const { return impl_->open()->expert_counts(); }

void Engine::reset_stats() { impl_->open()->reset_stats(); }

ModelInfo Engine::model_info() const { return impl_->open()->model_info(); }

void Engine::check_integrity() const { impl_->open()->check_integrity(); }

std::vector<float> Engine::forward(const std::vector<int32_t>& token_ids, int64_t chunk, std::vector<ImageInput> images) {
  return impl_->open()->forward(token_ids, chunk, std::move(images));
}

RouterLogits Engine::take_router_logits() { return impl_->open()->take_router_logits(); }

ExpertComparison Engine::compare_experts(const std::vector<int32_t>& token_ids, ExpertMetric metric) {
  return impl_->open()->compare_experts(token_ids, metric);
}

void Engine::close() {
  if (impl_->fork_guard.forked()) return;
  std::lock_guard lock(impl_->mutex);
  impl_->core.reset();
  impl_->outputs.clear();
  impl_->num_delivered = 0;
  impl_->changed.notify_all();
}

}  // namespace lynx_rt
