#include "model/expert_prefetch.h"

#include "base/error.h"

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
    : store_(store),
      num_experts_(config.num_experts),
      num_guesses_(num_guesses),
      router_(backend, config, weights, kMaxRows),
      guesses_(config.num_experts) {}

void ExpertPrefetch::hint(int64_t moe_layer, const float* x, int64_t num_rows) {
  if (num_rows > kMaxRows || moe_layer + 1 == router_.num_layers() || !store_.takes_hints()) return;
  float* scores = router_.score(moe_layer, x, num_rows);
  const float* bias = router_.choice_bias(moe_layer + 1);
  guesses_.begin();
  for (int64_t t = 0; t < num_rows; ++t, scores += num_experts_) {
    for (int64_t e = 0; bias && e < num_experts_; ++e) scores[e] += bias[e];
    guesses_.add_row(scores, num_guesses_);
  }
  store_.hint(moe_layer + 1, guesses_.end());
}

}  // namespace lynx_rt
