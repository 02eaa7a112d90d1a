#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/error.h"

namespace lynx_rt {

namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();
constexpr float kGreedyTemperature = 1e-5f;

// The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): a bijection on 64 bits that mixes well.
uint64_t mix(uint64_t z) {
  z += 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

double log_sum_exp(const float* x, int64_t n, float max) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(double(x[i]) - double(max));
  return double(max) + std::log(sum);
}

}  // namespace

double counter_uniform(uint64_t seed, uint64_t position) { return double(mix(mix(seed) ^ position) >> 11) * 0x1p-53; }
uint64_t derive_seed(uint64_t engine_seed, uint64_t request) { return mix(mix(engine_seed ^ 0x6c796e78ull) ^ request); }

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

void Sampler::apply_constraints(const Request& r, std::span<const int32_t> eos, float* logits) {
  const SamplingParams& p = r.params;
  if (!p.allowed_token_ids.empty()) {
    std::vector<float> kept;
    for (int32_t id : p.allowed_token_ids) kept.push_back(logits[id]);
    std::fill_n(logits, vocab_size_, kMasked);
    for (size_t i = 0; i < kept.size(); ++i) logits[p.allowed_token_ids[i]] = kept[i];
  }
  for (const auto& word : p.bad_words) {
    size_t prefix = word.size() - 1, generated = size_t(r.num_generated());
    if (prefix <= generated && std::equal(word.begin(), word.end() - 1, r.tokens.end() - ptrdiff_t(prefix)))
      logits[word.back()] = kMasked;
  }
  if (r.num_generated() < p.min_tokens) {
    for (int32_t id : eos) logits[id] = kMasked;
    for (int32_t id : p.stop_token_ids) logits[id] = kMasked;
  }
  for (auto [id, bias] : p.logit_bias) logits[id] += bias;
}

// repetition: arXiv 1909.05858 section 4.1, on prompt and output; frequency, presence: on output, as in OpenAI's API.
void Sampler::apply_penalties(const Request& r, float* logits) {
  const SamplingParams& p = r.params;
  if (p.repetition_penalty == 1.0f && p.frequency_penalty == 0.0f && p.presence_penalty == 0.0f) return;
  count_.resize(size_t(vocab_size_));
  in_prompt_.resize(size_t(vocab_size_));
  for (int64_t i = 0; i < int64_t(r.tokens.size()); ++i) {
    size_t id = size_t(r.tokens[size_t(i)]);
    if (i < r.prompt_len)
      in_prompt_[id] = 1;
    else
      ++count_[id];
  }
  for (int32_t token : r.tokens) {
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

int32_t Sampler::draw(const Request& r, const float* logits) {
  const SamplingParams& p = r.params;
  const float max = *std::max_element(logits, logits + vocab_size_);
  // Candidates in index order, or, where a filter needs it, from the most likely down, ties by index.
  order_.clear();
  for (int64_t i = 0; i < vocab_size_; ++i)
    if (logits[i] != kMasked) order_.push_back(int32_t(i));
  auto more_likely = [&](int32_t a, int32_t b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); };
  size_t k = p.top_k > 0 ? std::min(size_t(p.top_k), order_.size()) : order_.size();
  if (k < order_.size()) {
    std::nth_element(order_.begin(), order_.begin() + ptrdiff_t(k), order_.end(), more_likely);
    order_.resize(k);
  }
  if (k < size_t(vocab_size_) || p.top_p < 1.0f) std::sort(order_.begin(), order_.end(), more_likely);

  probability_.resize(order_.size());
  double sum = 0;
  for (size_t i = 0; i < order_.size(); ++i)
    sum += probability_[i] = std::exp((double(logits[order_[i]]) - double(max)) / double(p.temperature));
  size_t n = order_.size();
  if (p.top_p < 1.0f) {  // the smallest set whose mass reaches top_p: arXiv 1904.09751
    double mass = 0;
    for (n = 0; n < order_.size() && mass < double(p.top_p) * sum; ++n) mass += probability_[n];
    sum = mass;
  }
  if (p.min_p > 0.0f) {  // arXiv 2407.01082; the most likely token has weight exp(0) = 1
    sum = 0;
    for (size_t i = 0; i < n; ++i) sum += probability_[i] = probability_[i] >= double(p.min_p) ? probability_[i] : 0.0;
  }
  double target = counter_uniform(r.seed, uint64_t(r.tokens.size())) * sum, cumulative = 0;
  int32_t last = order_[0];
  for (size_t i = 0; i < n; ++i) {
    if (probability_[i] == 0.0) continue;
    cumulative += probability_[i];
    last = order_[i];
    if (cumulative > target) break;
  }
  return last;
}

Sampler::Result Sampler::sample(const Request& r, std::span<const int32_t> eos, float* logits) {
  for (int64_t i = 0; i < vocab_size_; ++i)
    if (std::isnan(logits[i])) fail(ErrorCode::kInternal, "logits", "request ", r.id, ": the logit of token ", i, " is NaN");
  std::vector<float> raw;
  if (r.params.logprobs >= 0) raw.assign(logits, logits + vocab_size_);
  apply_constraints(r, eos, logits);
  apply_penalties(r, logits);
  const float* best = std::max_element(logits, logits + vocab_size_);
  if (*best == kMasked) invalid("allowed_token_ids", "request ", r.id, ": the constraints leave no token to choose from");
  Result result{r.params.temperature < kGreedyTemperature ? int32_t(best - logits) : draw(r, logits), {}};
  if (r.params.logprobs >= 0) result.logprobs = top_logprobs(raw.data(), result.token, r.params.logprobs);
  return result;
}

}  // namespace lynx_rt
