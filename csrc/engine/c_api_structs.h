// The structs of the C ABI from and to those of the C++ API.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "lynx_rt/engine.h"
#include "lynx_rt/lynx_rt.h"

namespace lynx_rt {

// Thrown from a load that its progress callback has ended.
struct LoadCancelled {};

// Both throw kInvalidArgument where `size` is not set or an array is NULL but not empty.
EngineOptions to_options(const lynx_rt_options* from);
SamplingParams to_params(const lynx_rt_params* from);

// Calls a function of the caller; what it throws becomes kInternal.
void call_back(const char* name, const std::function<void()>& call);

// One output as C sees it. Points into `from`, which must outlive it.
class OutputView {
 public:
  explicit OutputView(const StepOutput& from);
  const lynx_rt_output& get() const { return view_; }
  OutputView(const OutputView&) = delete;
  OutputView& operator=(const OutputView&) = delete;

 private:
  const lynx_rt_logprobs* add(const std::vector<TokenLogprobs>& tokens);

  std::vector<lynx_rt_logprob> entries_;
  std::vector<lynx_rt_logprobs> lists_;
  lynx_rt_output view_{};
};

class ModelInfoView {
 public:
  explicit ModelInfoView(ModelInfo info);
  const lynx_rt_model_info& get() const { return view_; }
  ModelInfoView(const ModelInfoView&) = delete;
  ModelInfoView& operator=(const ModelInfoView&) = delete;

 private:
  ModelInfo info_;
  lynx_rt_model_info view_{};
};

// For lynx_rt_free_stats().
const lynx_rt_stats* make_stats(EngineStats stats);
void free_stats(const lynx_rt_stats* stats);

}  // namespace lynx_rt
