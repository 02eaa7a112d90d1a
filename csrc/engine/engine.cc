#include "lynx_rt/engine.h"

#include <mutex>

#include "base/error.h"
#include "base/fork.h"
#include "engine/engine_core.h"

namespace lynx_rt {

struct Engine::Impl {
  // The core, held until the end of the statement.
  class Open {
   public:
    explicit Open(const Impl& impl) : lock_(impl.mutex), core_(impl.core.get()) {
      if (!core_) fail(ErrorCode::kClosed, "", "the engine has been closed");
    }
    EngineCore* operator->() const { return core_; }

   private:
    std::lock_guard<std::mutex> lock_;
    EngineCore* core_;
  };

  mutable std::mutex mutex;
  std::unique_ptr<EngineCore> core;  // null after close()
  ForkGuard fork_guard;

  ~Impl() { close(); }
  Open open() const {
    fork_guard.check("the engine");  // first: the lock may be one that a thread of the parent holds
    return Open(*this);
  }
  void close() {
    if (fork_guard.forked()) {
      static_cast<void>(core.release());  // perhaps in the middle of a step, and its pages are shared with the parent
      return;
    }
    std::lock_guard lock(mutex);
    core.reset();
  }
};

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;

std::unique_ptr<Engine> Engine::create(const std::string& path, const EngineOptions& options) {
  auto impl = std::make_unique<Impl>();
  impl->core = std::make_unique<EngineCore>(path, options);
  return std::unique_ptr<Engine>(new Engine(std::move(impl)));
}

uint64_t Engine::add_request(std::vector<int32_t> prompt_token_ids, const SamplingParams& params) {
  return impl_->open()->add(std::move(prompt_token_ids), params);
}

std::vector<StepOutput> Engine::step() { return impl_->open()->step(); }

bool Engine::abort(uint64_t request_id) { return impl_->open()->abort(request_id); }

bool Engine::has_unfinished() const { return impl_->open()->has_unfinished(); }

void Engine::set_expert_selection(const std::string& selection) { impl_->open()->set_selection(selection); }

std::string Engine::expert_selection() const { return impl_->open()->selection(); }

EngineStats Engine::stats() const { return impl_->open()->stats(); }

void Engine::reset_stats() { impl_->open()->reset_stats(); }

ModelInfo Engine::model_info() const { return impl_->open()->model_info(); }

void Engine::check_integrity() const { impl_->open()->check_integrity(); }

std::vector<float> Engine::forward(const std::vector<int32_t>& token_ids, int64_t chunk) {
  return impl_->open()->forward(token_ids, chunk);
}

RouterLogits Engine::take_router_logits() { return impl_->open()->take_router_logits(); }

ExpertComparison Engine::compare_experts(const std::vector<int32_t>& token_ids, ExpertMetric metric) {
  return impl_->open()->compare_experts(token_ids, metric);
}

void Engine::close() { impl_->close(); }

}  // namespace lynx_rt
