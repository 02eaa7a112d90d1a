// The state of a request. Plain data; the scheduler and the engine keep its invariants.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "engine/block_pool.h"
#include "engine/request_image.h"
#include "lynx_rt/engine.h"

namespace lynx_rt {

struct Request {
  uint64_t id = 0;
  SamplingParams params;
  TokenMask token_mask;         // null = every token may follow
  uint64_t seed = 0;            // params.seed, or derived from the engine's
  std::vector<int32_t> tokens;  // prompt, then generated tokens, then drafts
  int64_t prompt_len = 0;
  std::vector<RequestImage> images;  // of the prompt, in order
  int64_t num_drafts = 0;            // guessed tokens, each to be compared with the one drawn after the token before it
  int64_t max_len = 0;               // tokens.size() at which the request ends: prompt + max_tokens, at most max_model_len

  int64_t num_computed = 0;  // tokens whose K and V are in `blocks`; < tokens.size() between steps
  // Leading tokens whose K and V were computed under the model's own routing. A batch-aware step ends this run: pages from there
  // on depend on the batch, and no other request may find them.
  int64_t num_reproducible = 0;
  std::vector<int32_t> blocks;  // page i holds tokens [i * block_size, (i + 1) * block_size)
  // Pages of each group of layers with a window: as many as `blocks`, of which the first num_freed have been given back (kFreedBlock).
  struct PageTable {
    std::vector<int32_t> blocks;
    size_t num_freed = 0;
  };
  std::vector<PageTable> windows;
  std::vector<ContentId> contents;  // of the leading pages: those found in the prefix cache or offered to it

  // Page boundaries, in tokens, at which the state is offered to the prefix cache; rows of a step end there. `junction` is where the
  // request was seen to leave a prefix that it shares with others, `last` the last boundary that the same tokens can begin at. 0 = none.
  struct Boundaries {
    int64_t junction = 0, last = 0;
  } boundaries;
  // Slots of the StateCache, where layers have a state beside pages: `state` after num_computed tokens (-1 = none), `snapshot`
  // after fewer.
  int32_t state = -1;
  struct Snapshot {
    int32_t slot = -1;  // -1 = none
    int64_t num_computed = 0;
  } snapshot;

  std::vector<TokenLogprobs> prompt_logprobs;
  int64_t num_routed_returned = 0;  // leading tokens whose routed experts have been returned
  int64_t num_cached_tokens = 0, num_preemptions = 0;
  int64_t num_selected_rows = 0, num_decode_steps = 0, num_experts_read = 0;  // as StepOutput has them
  std::vector<int16_t> signature;  // of the prompt, see Admission; empty under first_come
  int64_t num_skips = 0;           // how often a later request took a free place
  double scheduler_time = 0;
  double arrival_time = 0, first_scheduled_time = 0, first_token_time = 0;
  double deadline = std::numeric_limits<double>::infinity();  // on the same clock

  int64_t num_computed_prompt_tokens() const { return std::min(num_computed, prompt_len); }
  int64_t num_generated() const { return int64_t(tokens.size()) - prompt_len; }
  int64_t num_pending() const { return int64_t(tokens.size()) - num_computed; }  // tokens still to be computed
  // Returns the index of the first token whose logits a token is drawn from: the last token before the drafts.
  int64_t first_sampled() const { return int64_t(tokens.size()) - 1 - num_drafts; }
  // Returns whether the pending tokens are decode rows: a token is drawn after each of them, and none is in the prompt.
  bool is_decoding() const { return num_computed >= std::max(prompt_len, first_sampled()); }
  // Returns whether logits of prompt rows are needed, for the log-probabilities of the tokens after them.
  bool wants_prompt_logits() const { return params.prompt_logprobs >= 0 && num_generated() == 0; }
};

// Throw kInvalidArgument naming the field, what was expected and what was found.
void check_tokens(const char* field, std::span<const int32_t> tokens, int64_t vocab_size);
void validate(const SamplingParams& params, int64_t vocab_size);

}  // namespace lynx_rt
