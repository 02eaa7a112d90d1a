// Converts between the structs of the C ABI and those of the C++ API.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "lynx_rt/engine.h"
#include "lynx_rt/lynx_rt.h"

namespace lynx_rt {

// Thrown to end a load when the progress callback asks for it.
struct LoadCancelled {};

// Convert a caller's struct. Throw kInvalidArgument where `size` is not set, or an array is NULL but not empty.
EngineOptions to_options(const lynx_rt_options* from);
std::vector<ImageInput> to_images(const lynx_rt_image* images, size_t count);
SamplingParams to_params(const lynx_rt_params* from);

// Calls a caller's function; turns anything that it throws into kInternal.
void call_back(const char* name, const std::function<void()>& call);

// An output as the C ABI has it. It points into `from`, which must outlive it.
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

// Allocates what lynx_rt_free_stats() frees.
const lynx_rt_stats* make_stats(EngineStats stats);
void free_stats(const lynx_rt_stats* stats);

}  // namespace lynx_rt
