#include "lynx_rt/engine.h"

#include <mutex>

#include "base/error.h"
#include "engine/engine_core.h"

namespace lynx_rt {

struct Engine::Impl {
  mutable std::mutex mutex;
  std::unique_ptr<EngineCore> core;  // null after close()

  EngineCore& open() const {
    if (!core) fail(ErrorCode::kClosed, "", "the engine has been closed");
    return *core;
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
  std::lock_guard lock(impl_->mutex);
  return impl_->open().add(std::move(prompt_token_ids), params);
}

std::vector<StepOutput> Engine::step() {
  std::lock_guard lock(impl_->mutex);
  return impl_->open().step();
}

bool Engine::abort(uint64_t request_id) {
  std::lock_guard lock(impl_->mutex);
  return impl_->open().abort(request_id);
}

bool Engine::has_unfinished() const {
  std::lock_guard lock(impl_->mutex);
  return impl_->open().has_unfinished();
}

void Engine::set_expert_selection(const std::string& selection) {
  std::lock_guard lock(impl_->mutex);
  impl_->open().set_selection(selection);
}

std::string Engine::expert_selection() const {
  std::lock_guard lock(impl_->mutex);
  return impl_->open().selection();
}

EngineStats Engine::stats() const {
  std::lock_guard lock(impl_->mutex);
  return impl_->open().stats();
}

void Engine::reset_stats() {
  std::lock_guard lock(impl_->mutex);
  impl_->open().reset_stats();
}

ModelInfo Engine::model_info() const {
  std::lock_guard lock(impl_->mutex);
  return impl_->open().model_info();
}

void Engine::check_integrity() const {
  std::lock_guard lock(impl_->mutex);
  impl_->open().check_integrity();
}

std::vector<float> Engine::forward(const std::vector<int32_t>& token_ids, int64_t chunk) {
  std::lock_guard lock(impl_->mutex);
  return impl_->open().forward(token_ids, chunk);
}

RouterLogits Engine::take_router_logits() {
  std::lock_guard lock(impl_->mutex);
  return impl_->open().take_router_logits();
}

ExpertComparison Engine::compare_experts(const std::vector<int32_t>& token_ids, ExpertMetric metric) {
  std::lock_guard lock(impl_->mutex);
  return impl_->open().compare_experts(token_ids, metric);
}

void Engine::close() {
  std::lock_guard lock(impl_->mutex);
  impl_->core.reset();
}

}  // namespace lynx_rt
