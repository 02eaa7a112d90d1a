// How one request is sampled. Names and meanings are vLLM's. Stop strings and n are handled by the Python layer, which has the
// text.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace lynx_rt {

struct SamplingParams {
  float temperature = 1.f;         // >= 0; below 1e-5 means greedy
  float top_p = 1.f;               // (0, 1]
  int32_t top_k = 0;               // 0 or -1 = all
  float min_p = 0.f;               // [0, 1], relative to the most likely token
  float presence_penalty = 0.f;    // [-2, 2], on generated tokens
  float frequency_penalty = 0.f;   // [-2, 2], per occurrence in generated tokens
  float repetition_penalty = 1.f;  // > 0, on prompt and generated tokens
  std::optional<uint64_t> seed;    // absent = derived from the engine's seed and the request's number
  int32_t max_tokens = 256;        // >= 1; cut to the context end
  int32_t min_tokens = 0;          // no end of text before this many tokens
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  int32_t logprobs = -1;                              // per generated token: the n most likely and the sampled one; -1 = off
  int32_t prompt_logprobs = -1;                       // likewise for prompt tokens; -1 = off
  std::vector<std::pair<int32_t, float>> logit_bias;  // added before the softmax
  std::vector<int32_t> allowed_token_ids;             // empty = all
  std::vector<std::vector<int32_t>> bad_words;        // token sequences that must not be completed
  // Teacher forcing: the i-th generated token is forced_token_ids[i], whatever its likelihood, which logprobs report. The request
  // ends with kLength at the last of them and not before; max_tokens and all constraints have no effect.
  std::vector<int32_t> forced_token_ids;  // empty = tokens are drawn
  bool exact = false;                     // this request has the model's own routing, whatever the engine's selection is
  // Requests wait in the order of (priority, arrival), lower first, and where pages run out, the last in that order is preempted.
  // A request that waits never takes the place of one that runs.
  int32_t priority = 0;
  // Seconds from the arrival after which the request ends with kTimeout, wherever it is; 0 = none. Looked at between steps.
  double timeout = 0;
  // Only requests with equal salts find each other's pages in the prefix cache. Any bytes, at most 1024.
  std::string cache_salt;
  // Batch-aware selection chooses experts for the requests of one group as if no others were in the step; "" is the group of all
  // that name none. Any bytes, at most 1024. Requests with `exact` need none.
  std::string isolation_group;
  bool report_progress = false;  // an output without tokens after each step that computes a part of the prompt
};

}  // namespace lynx_rt
