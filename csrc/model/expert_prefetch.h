// Guesses which experts the next MoE layer will use, so that they are read while this one is computed.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "model/next_router.h"
#include "tiers/guesses.h"

namespace lynx_rt {

struct PrefetchRule {
  int64_t num_guesses = 0;  // experts per row; 0 = none
  // The guess is the choice: each MoE layer but the first routes by what its router said of the rows one layer before, so that no guess is
  // wrong. Changes results: for models that were trained so. Source: arXiv 2308.12066 (Pre-gated MoE).
  bool pregated = false;
};

// Parses EngineOptions::expert_prefetch: "none", "next_router" (top_k guesses), "next_router:n=6", "pregated". Throws kInvalidArgument
// (field expert_prefetch).
PrefetchRule parse_prefetch(const std::string& text, int64_t num_experts, int64_t top_k);

// The guess of NextRouter. Test: tests/tiers/test_prefetch.py.
class ExpertPrefetch {
 public:
  // Above so many rows the experts of a step are nearly all, whoever guesses.
  static constexpr int64_t kMaxRows = 8;

  // rule: with guesses. `store`: has the experts; may be null if pregated. max_rows: of a step.
  ExpertPrefetch(Backend& backend, const ModelConfig& config, const ModelWeights& weights, ExpertStore* store,
                 const PrefetchRule& rule, int64_t max_rows);
  bool pregated() const { return rule_.pregated; }
  // Has the store read what layer `moe_layer` + 1 may need. x: [T, H] residual stream after the attention of `moe_layer`.
  void hint(int64_t moe_layer, const float* x, int64_t num_rows);
  // Returns the router logits [T, E] of the layer after that of the last hint(), if pregated.
  const float* scores() const { return scores_; }

 private:
  ExpertStore* store_;
  PrefetchRule rule_;
  int64_t num_experts_;
  NextRouter router_;
  Guesses guesses_;
  const float* scores_ = nullptr;
  std::vector<float> row_;  // [E]
};

}  // namespace lynx_rt
