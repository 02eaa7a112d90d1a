// Chooses a request's next token from its logits.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "backend/sampling.h"
#include "engine/request.h"

namespace lynx_rt {

// A row of logits whose next token is drawn.
struct SampleRow {
  const Request& request;
  std::span<const int32_t> tokens;  // the request's tokens up to and including the row's
  const int32_t* mask = nullptr;    // token mask (backend/sampling.h); null = none

  int64_t num_generated() const { return int64_t(tokens.size()) - request.prompt_len; }
};

// Draws tokens. Its scratch memory, sized for one vocabulary, is reused. Thread-safety: one call at a time.
class Sampler {
 public:
  explicit Sampler(int64_t vocab_size) : vocab_size_(vocab_size) {}

  struct Result {
    int32_t token;
    TokenLogprobs logprobs;  // empty where not requested
  };
  // Draws the next token from `logits` [V], which it overwrites. Order of effects: token mask, allowed_token_ids, bad_words,
  // min_tokens (masks eos and stop tokens), logit_bias, repetition / frequency / presence penalty, temperature, top_k, top_p,
  // min_p. Logprobs are those of the given logits, before any of these, as in vLLM. The draw is a pure function of (request.seed,
  // position = row.tokens.size(), logits). forced_token_ids replaces all of this. Throws kInternal naming the request where a
  // logit is NaN; kInvalidArgument where no token is left to choose from.
  Result sample(const SampleRow& row, std::span<const int32_t> eos_token_ids, float* logits);

  // draws_only() returns whether the next token of a row needs nothing but the draw, so that Backend::sample() can make it.
  // draw_params() returns the parameters of that draw; for a row that needs more, those of the cheapest draw. describe_error()
  // returns the text for the error value of such a draw.
  static bool draws_only(const SampleRow& row);
  static DrawParams draw_params(const SampleRow& row);
  static std::string describe_error(const Request& request, int32_t token, bool has_mask);

  // Returns `token` itself, then the `count` most likely tokens, from logits [V].
  TokenLogprobs top_logprobs(const float* logits, int32_t token, int64_t count);

 private:
  void apply_constraints(const SampleRow& row, std::span<const int32_t> eos_token_ids, float* logits);
  void apply_penalties(const SampleRow& row, float* logits);

  int64_t vocab_size_;
  TokenDrawer drawer_;
  std::vector<int32_t> order_;
  std::vector<int32_t> count_;  // occurrences of each token in the row's tokens; all zero between calls
  std::vector<uint8_t> in_prompt_;
};

// Derives independent seeds from an engine seed and a request number.
uint64_t derive_seed(uint64_t engine_seed, uint64_t request);

}  // namespace lynx_rt
