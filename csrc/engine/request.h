// One request's state. Plain data; the scheduler and the engine keep its invariants.
#pragma once
#include <cstdint>
#include <vector>

#include "engine/block_pool.h"
#include "lynx_rt/engine.h"

namespace lynx_rt {

struct Request {
  uint64_t id = 0;
  SamplingParams params;
  uint64_t seed = 0;            // params.seed, or derived from the engine's
  std::vector<int32_t> tokens;  // prompt, then what was generated
  int64_t prompt_len = 0;
  int64_t max_len = 0;  // tokens.size() at which it ends: prompt + max_tokens, at most max_model_len

  int64_t num_computed = 0;  // tokens whose K and V are in `blocks`; < tokens.size() between steps
  // Leading tokens whose K and V were computed under the model's own routing. A batch-aware step ends it: pages
  // from there on depend on the batch and must never be found by another request.
  int64_t num_reproducible = 0;
  std::vector<int32_t> blocks;          // page i holds tokens [i * block_size, (i + 1) * block_size)
  int64_t num_registered = 0;           // leading pages offered to the prefix cache
  ContentId last_content = kNoContent;  // content of the last registered page

  std::vector<TokenLogprobs> prompt_logprobs;
  int64_t num_routed_returned = 0;  // leading tokens whose routed experts the caller has
  int64_t num_cached_tokens = 0, num_preemptions = 0;
  double arrival_time = 0, first_scheduled_time = 0, first_token_time = 0;

  int64_t num_generated() const { return int64_t(tokens.size()) - prompt_len; }
  // One token to compute, and it was generated: a decode row.
  bool is_decoding() const { return num_computed + 1 == int64_t(tokens.size()) && num_computed >= prompt_len; }
};

// Throws kInvalidArgument naming the field, what was expected and what was found.
void validate(const SamplingParams& params, int64_t vocab_size);

}  // namespace lynx_rt
