#include "model/expert_prefetch.h"

#include "base/error.h"

namespace lynx_rt {

PrefetchRule parse_prefetch(const std::string& text, int64_t num_experts, int64_t top_k) {
  if (text == "none") return {};
  if (text == "next_router") return {top_k, false};
  if (text == "pregated") return {top_k, true};
  const std::string start = "next_router:n=";
  double n = 0;
  if (!text.starts_with(start) || !read_number(text.substr(start.size()), n) || n != double(int64_t(n)) || n < 1 ||
      n > double(num_experts))
    invalid("expert_prefetch", "expected \"none\", \"next_router\", \"next_router:n=N\" with N in 1..", num_experts,
            " or \"pregated\", got \"", text, "\"");
  return {int64_t(n), false};
}

ExpertPrefetch::ExpertPrefetch(Backend& backend, const ModelConfig& config, const ModelWeights& weights, ExpertStore* store,
                               const PrefetchRule& rule, int64_t max_rows)
    : store_(store),
      rule_(rule),
      num_experts_(config.num_experts),
      router_(backend, config, weights, rule.pregated ? max_rows : kMaxRows),
      guesses_(config.num_experts),
      row_(size_t(config.num_experts)) {}

void ExpertPrefetch::hint(int64_t moe_layer, const float* x, int64_t num_rows) {
  if (moe_layer + 1 == router_.num_layers()) return;
  const bool reads = store_ && num_rows <= kMaxRows && store_->takes_hints();
  if (!reads && !rule_.pregated) return;
  const float* scores = scores_ = router_.score(moe_layer, x, num_rows);
  if (!reads) return;
  const float* bias = router_.choice_bias(moe_layer + 1);
  guesses_.begin();
  for (int64_t t = 0; t < num_rows; ++t, scores += num_experts_) {
    for (int64_t e = 0; e < num_experts_; ++e) row_[size_t(e)] = scores[e] + (bias ? bias[e] : 0);
    guesses_.add_row(row_.data(), rule_.num_guesses);
  }
  store_->hint(moe_layer + 1, guesses_.end());
}

}  // namespace lynx_rt
