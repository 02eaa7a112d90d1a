#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>

#include "base/error.h"

namespace lynx_rt {

namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

// Returns the logarithm of the sum of exp(x[i]), computed by masses. The error of the sum is below n * 2^-45 of exp(max): 2^-27
// for 2^18 tokens.
double log_sum_exp(const float* x, int64_t n, float max) {
  constexpr int64_t kBlock = 512;
  const MassRule rule{max, std::numbers::log2e, mass_of_one(n), 0};
  uint64_t mass[kBlock], sum = 0;
  for (int64_t i = 0; i < n; i += kBlock) sum += kPortableDrawKernels.masses(rule, x + i, std::min(kBlock, n - i), mass);
  return double(max) + std::log(double(sum) / rule.one);
}

}  // namespace

uint64_t derive_seed(uint64_t engine_seed, uint64_t request) { return mix_bits(mix_bits(engine_seed ^ 0x6c796e78ull) ^ request); }

TokenLogprobs Sampler::top_logprobs(const float* logits, int32_t token, int64_t count) {
  float max = *std::max_element(logits, logits + vocab_size_);
  double norm = log_sum_exp(logits, vocab_size_, max);
  auto logprob = [&](int32_t id) { return float(double(logits[id]) - norm); };
  int32_t rank = 1;
  for (int64_t i = 0; i < vocab_size_; ++i) rank += logits[i] > logits[token] || (logits[i] == logits[token] && i < token);
  TokenLogprobs out{{token, logprob(token), rank}};
  order_.resize(size_t(vocab_size_));
  std::iota(order_.begin(), order_.end(), 0);
  std::partial_sort(order_.begin(), order_.begin() + count, order_.end(),
                    [&](int32_t a, int32_t b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); });
  for (int64_t i = 0; i < count; ++i)
    if (order_[size_t(i)] != token) out.push_back({order_[size_t(i)], logprob(order_[size_t(i)]), int32_t(i + 1)});
  return out;
}

void Sampler::apply_constraints(const SampleRow& row, std::span<const int32_t> eos, float* logits) {
  const SamplingParams& p = row.request.params;
  if (row.mask) apply_token_mask(logits, vocab_size_, row.mask, logits);
  if (!p.allowed_token_ids.empty()) {
    std::vector<float> kept;
    for (int32_t id : p.allowed_token_ids) kept.push_back(logits[id]);
    std::fill_n(logits, vocab_size_, kMasked);
    for (size_t i = 0; i < kept.size(); ++i) logits[p.allowed_token_ids[i]] = kept[i];
  }
  for (const auto& word : p.bad_words) {
    size_t prefix = word.size() - 1, generated = size_t(row.num_generated());
    if (prefix <= generated && std::equal(word.begin(), word.end() - 1, row.tokens.end() - ptrdiff_t(prefix)))
      logits[word.back()] = kMasked;
  }
  if (row.num_generated() < p.min_tokens) {
    for (int32_t id : eos) logits[id] = kMasked;
    for (int32_t id : p.stop_token_ids) logits[id] = kMasked;
  }
  for (auto [id, bias] : p.logit_bias) logits[id] += bias;
}

// Applies the penalties: repetition (arXiv 1909.05858 section 4.1) on prompt and output; frequency and presence on output, as in
// OpenAI's API.
void Sampler::apply_penalties(const SampleRow& row, float* logits) {
  const SamplingParams& p = row.request.params;
  if (p.repetition_penalty == 1.0f && p.frequency_penalty == 0.0f && p.presence_penalty == 0.0f) return;
  count_.resize(size_t(vocab_size_));
  in_prompt_.resize(size_t(vocab_size_));
  for (int64_t i = 0; i < int64_t(row.tokens.size()); ++i) {
    size_t id = size_t(row.tokens[size_t(i)]);
    if (i < row.request.prompt_len)
      in_prompt_[id] = 1;
    else
      ++count_[id];
  }
  for (int32_t token : row.tokens) {
    size_t id = size_t(token);
    if (!in_prompt_[id] && !count_[id]) continue;  // done at an earlier occurrence
    float& l = logits[id];
    l = l > 0 ? l / p.repetition_penalty : l * p.repetition_penalty;
    l -= p.frequency_penalty * float(count_[id]);
    l -= count_[id] ? p.presence_penalty : 0.0f;
    in_prompt_[id] = 0;
    count_[id] = 0;
  }
}

bool Sampler::draws_only(const SampleRow& row) {
  const SamplingParams& p = row.request.params;
  return p.logprobs < 0 && p.allowed_token_ids.empty() && p.forced_token_ids.empty() && p.bad_words.empty() &&
         p.logit_bias.empty() && row.num_generated() >= p.min_tokens && p.repetition_penalty == 1.0f &&
         p.frequency_penalty == 0.0f && p.presence_penalty == 0.0f;
}

DrawParams Sampler::draw_params(const SampleRow& row) {
  const SamplingParams& p = row.request.params;
  if (!draws_only(row)) return {0.0f, 1.0f, 0.0f, 0, 0.0};
  return {p.temperature, p.top_p, p.min_p, p.top_k, counter_uniform(row.request.seed, uint64_t(row.tokens.size()))};
}

std::string Sampler::describe_error(const Request& r, int32_t token, bool has_mask) {
  if (token == kNanLogit) return str_cat("request ", r.id, ": a logit is NaN");
  return str_cat("request ", r.id, has_mask ? ": the token mask leaves no token to choose from" : ": all logits are -infinity");
}

Sampler::Result Sampler::sample(const SampleRow& row, std::span<const int32_t> eos, float* logits) {
  const Request& r = row.request;
  for (int64_t i = 0; i < vocab_size_; ++i)
    if (std::isnan(logits[i])) fail(ErrorCode::kInternal, "logits", "request ", r.id, ": the logit of token ", i, " is NaN");
  const SamplingParams& p = r.params;
  if (!p.forced_token_ids.empty()) {
    const int32_t token = p.forced_token_ids[size_t(row.num_generated())];
    return {token, p.logprobs < 0 ? TokenLogprobs{} : top_logprobs(logits, token, p.logprobs)};
  }
  std::vector<float> raw;
  if (p.logprobs >= 0) raw.assign(logits, logits + vocab_size_);
  apply_constraints(row, eos, logits);
  apply_penalties(row, logits);
  const double uniform = counter_uniform(r.seed, uint64_t(row.tokens.size()));
  const int32_t token = drawer_.draw(logits, vocab_size_, {p.temperature, p.top_p, p.min_p, p.top_k, uniform});
  if (token == kNanLogit) fail(ErrorCode::kInternal, "logits", "request ", r.id, ": a penalty or bias made a logit NaN");
  if (token == kNoToken && row.mask) invalid("token_mask", describe_error(r, token, true));
  if (token == kNoToken) invalid("allowed_token_ids", "request ", r.id, ": the constraints leave no token to choose from");
  Result result{token, {}};
  if (p.logprobs >= 0) result.logprobs = top_logprobs(raw.data(), result.token, p.logprobs);
  return result;
}

}  // namespace lynx_rt
