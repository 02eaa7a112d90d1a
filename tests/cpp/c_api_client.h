// Common code of the tests of the C ABI: parameters, an engine that is destroyed with its scope, and a callback that collects outputs.
#pragma once
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "check.h"
#include "lynx_rt/lynx_rt.h"

inline const std::vector<int32_t> kPrompt = {1, 20, 21};

#define CHECK_OK(call) CHECK_EQ(int(call), int(LYNX_RT_OK))

inline bool last_error_has(const char* text) { return std::strstr(lynx_rt_last_error(), text) != nullptr; }

inline lynx_rt_params with_max_tokens(int32_t max_tokens) {
  lynx_rt_params params{};
  params.size = sizeof params;
  params.max_tokens = max_tokens;
  params.ignore_eos = 1;
  return params;
}

inline lynx_rt_options sized_options() {
  lynx_rt_options options{};
  options.size = sizeof options;
  options.num_threads = 2;
  return options;
}

struct OwnedEngine {
  explicit OwnedEngine(const char* model, const lynx_rt_options& options = sized_options())
      : get(lynx_rt_create(model, &options)) {
    CHECK(get != nullptr);
    if (!get) std::cerr << lynx_rt_last_error() << "\n";
  }
  ~OwnedEngine() { lynx_rt_destroy(get); }
  OwnedEngine(const OwnedEngine&) = delete;
  OwnedEngine& operator=(const OwnedEngine&) = delete;
  operator lynx_rt_engine*() const { return get; }
  lynx_rt_engine* get;
};

inline uint64_t add(lynx_rt_engine* engine, const lynx_rt_params& params, const std::vector<int32_t>& prompt = kPrompt) {
  uint64_t id = 0;
  CHECK_OK(lynx_rt_add_request(engine, prompt.data(), prompt.size(), &params, &id));
  CHECK(id > 0);
  return id;
}

using OnOutput = std::function<void(const lynx_rt_output&)>;

inline void call_on_output(const lynx_rt_output* output, void* user) { (*static_cast<OnOutput*>(user))(*output); }

inline lynx_rt_status step(lynx_rt_engine* engine, OnOutput on_output) {
  return lynx_rt_step(engine, call_on_output, &on_output);
}

// All outputs of a request.
struct Collected {
  std::vector<int32_t> tokens;
  lynx_rt_finish finish = LYNX_RT_RUNNING;
  int32_t stop_token_id = -1;
  std::string error;
  std::vector<std::vector<float>> logprobs, prompt_logprobs;  // flat triples: id, log probability, rank
  int64_t num_cached_tokens = 0, num_routed_rows = 0, num_routed_layers = 0, num_routed_experts_per_tok = 0;
};

inline std::vector<std::vector<float>> flat(const lynx_rt_logprobs* lists, size_t count) {
  std::vector<std::vector<float>> out(count);
  for (size_t i = 0; i < count; ++i)
    for (size_t j = 0; j < lists[i].num_entries; ++j) {
      const lynx_rt_logprob& e = lists[i].entries[j];
      out[i].insert(out[i].end(), {float(e.token_id), e.logprob, float(e.rank)});
    }
  return out;
}

inline void collect(const lynx_rt_output& output, Collected& to) {
  to.tokens.insert(to.tokens.end(), output.token_ids, output.token_ids + output.num_tokens);
  to.finish = output.finish;
  to.stop_token_id = output.stop_token_id;
  to.error = output.error;
  for (auto& entries : flat(output.logprobs, output.num_logprobs)) to.logprobs.push_back(entries);
  for (auto& entries : flat(output.prompt_logprobs, output.num_prompt_logprobs)) to.prompt_logprobs.push_back(entries);
  to.num_cached_tokens = output.num_cached_tokens;
  to.num_routed_rows += output.num_routed_rows;
  to.num_routed_layers = output.num_routed_layers;
  to.num_routed_experts_per_tok = output.num_routed_experts_per_tok;
}

inline Collected run(lynx_rt_engine* engine, const lynx_rt_params& params, const std::vector<int32_t>& prompt = kPrompt) {
  Collected out;
  add(engine, params, prompt);
  CHECK_EQ(lynx_rt_has_unfinished(engine), 1);
  while (lynx_rt_has_unfinished(engine)) CHECK_OK(step(engine, [&](const lynx_rt_output& o) { collect(o, out); }));
  return out;
}
