#include "model/expert_prefetch.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "model/norm.h"

namespace lynx_rt {

int64_t parse_prefetch(const std::string& text, int64_t num_experts, int64_t top_k) {
  if (text == "none") return 0;
  if (text == "next_router") return top_k;
  const std::string start = "next_router:n=";
  double n = 0;
  if (!text.starts_with(start) || !read_number(text.substr(start.size()), n) || n != double(int64_t(n)) || n < 1 ||
      n > double(num_experts))
    invalid("expert_prefetch", "expected \"none\", \"next_router\" or \"next_router:n=N\" with N in 1..", num_experts, ", got \"",
            text, "\"");
  return int64_t(n);
}

ExpertPrefetch::ExpertPrefetch(Backend& backend, const ModelConfig& config, const ModelWeights& weights, ExpertStore& store,
                               int64_t num_guesses)
    : backend_(backend),
      config_(config),
      store_(store),
      num_guesses_(num_guesses),
      normed_(backend, kMaxRows, config.hidden_size, "expert_prefetch"),
      scores_(backend, kMaxRows * config.num_experts, "expert_prefetch"),
      best_(size_t(config.num_experts)) {
  for (int64_t l = 0; l < config.num_layers; ++l)
    if (config.layers[size_t(l)].moe) layers_.push_back(&weights.layers[size_t(l)]);
}

void ExpertPrefetch::hint(int64_t moe_layer, const float* x, int64_t num_rows) {
  if (num_rows > kMaxRows || moe_layer + 1 == int64_t(layers_.size()) || !store_.takes_hints()) return;
  const LayerWeights& w = *layers_[size_t(moe_layer + 1)];
  norm(backend_, config_, x, w.post_attention_norm, w.post_attention_norm_bias, num_rows, normed_);
  backend_.router(normed_.f32(), w.router, w.router_bias, num_rows, scores_.get());

  const int64_t experts = config_.num_experts;
  const auto* bias = static_cast<const float*>(w.choice_bias.data);
  std::fill(best_.begin(), best_.end(), -std::numeric_limits<float>::infinity());
  guesses_.resize(size_t(experts));
  for (int64_t t = 0; t < num_rows; ++t) {
    float* scores = scores_.get() + t * experts;
    for (int64_t e = 0; bias && e < experts; ++e) scores[e] += bias[e];
    std::iota(guesses_.begin(), guesses_.end(), 0);
    std::partial_sort(guesses_.begin(), guesses_.begin() + num_guesses_, guesses_.end(),
                      [&](int32_t a, int32_t b) { return scores[a] != scores[b] ? scores[a] > scores[b] : a < b; });
    for (int64_t i = 0; i < num_guesses_; ++i) {
      const int32_t e = guesses_[size_t(i)];
      best_[size_t(e)] = std::max(best_[size_t(e)], scores[e] - scores[guesses_[0]]);
    }
  }
  guesses_.clear();
  for (int32_t e = 0; e < int32_t(experts); ++e)
    if (best_[size_t(e)] > -std::numeric_limits<float>::infinity()) guesses_.push_back(e);
  std::stable_sort(guesses_.begin(), guesses_.end(), [&](int32_t a, int32_t b) { return best_[size_t(a)] > best_[size_t(b)]; });
  store_.hint(moe_layer + 1, guesses_);
}

}  // namespace lynx_rt
