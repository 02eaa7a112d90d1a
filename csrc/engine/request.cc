#include "engine/request.h"

#include <cmath>

#include "base/error.h"

namespace lynx_rt {

namespace {

void check_range(const char* field, double v, double min, double max) {
  if (!(v >= min && v <= max)) invalid(field, "expected a number in [", min, ", ", max, "], got ", v);
}

void check_ids(const char* field, const std::vector<int32_t>& ids, int64_t vocab) {
  for (int32_t id : ids)
    if (id < 0 || id >= vocab) invalid(field, "expected token ids in [0, ", vocab, "), got ", id);
}

}  // namespace

void check_tokens(const char* field, std::span<const int32_t> tokens, int64_t vocab) {
  for (size_t i = 0; i < tokens.size(); ++i)
    if (tokens[i] < 0 || tokens[i] >= vocab)
      invalid(field, "expected ids in [0, ", vocab, "), got ", tokens[i], " at position ", i);
}

void validate(const SamplingParams& p, int64_t vocab) {
  if (!std::isfinite(p.temperature) || p.temperature < 0)
    invalid("temperature", "expected a finite number >= 0, got ", double(p.temperature));
  if (!(p.top_p > 0 && p.top_p <= 1)) invalid("top_p", "expected a number in (0, 1], got ", double(p.top_p));
  if (p.top_k < -1) invalid("top_k", "expected -1 or 0 (all) or a positive integer, got ", p.top_k);
  check_range("min_p", p.min_p, 0, 1);
  check_range("presence_penalty", p.presence_penalty, -2, 2);
  check_range("frequency_penalty", p.frequency_penalty, -2, 2);
  if (!std::isfinite(p.repetition_penalty) || p.repetition_penalty <= 0)
    invalid("repetition_penalty", "expected a finite number > 0, got ", double(p.repetition_penalty));
  if (p.max_tokens < 1) invalid("max_tokens", "expected at least 1, got ", p.max_tokens);
  if (p.min_tokens < 0 || p.min_tokens > p.max_tokens)
    invalid("min_tokens", "expected 0 <= min_tokens <= max_tokens (", p.max_tokens, "), got ", p.min_tokens);
  if (p.logprobs < -1 || p.logprobs > vocab) invalid("logprobs", "expected -1 (off) to ", vocab, ", got ", p.logprobs);
  if (p.prompt_logprobs < -1 || p.prompt_logprobs > vocab)
    invalid("prompt_logprobs", "expected -1 (off) to ", vocab, ", got ", p.prompt_logprobs);
  if (!std::isfinite(p.timeout) || p.timeout < 0) invalid("timeout", "expected 0 (none) or finite seconds > 0, got ", p.timeout);
  if (p.cache_salt.size() > 1024) invalid("cache_salt", "expected at most 1024 bytes, got ", p.cache_salt.size());
  if (p.isolation_group.size() > 1024) invalid("isolation_group", "expected at most 1024 bytes, got ", p.isolation_group.size());
  check_ids("stop_token_ids", p.stop_token_ids, vocab);
  check_ids("allowed_token_ids", p.allowed_token_ids, vocab);
  check_ids("forced_token_ids", p.forced_token_ids, vocab);
  for (const auto& word : p.bad_words) {
    if (word.empty()) invalid("bad_words", "expected non-empty token sequences, got an empty one");
    check_ids("bad_words", word, vocab);
  }
  for (auto [id, bias] : p.logit_bias) {
    check_ids("logit_bias", {id}, vocab);
    if (!std::isfinite(bias)) invalid("logit_bias", "expected a finite bias for token ", id, ", got ", double(bias));
  }
}

}  // namespace lynx_rt
