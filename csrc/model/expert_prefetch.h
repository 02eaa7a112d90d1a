// Guesses which experts the next MoE layer will use, so that they are read while this one is computed.
#pragma once
#include <cstdint>
#include <string>

#include "model/next_router.h"
#include "tiers/guesses.h"

namespace lynx_rt {

// Parses EngineOptions::expert_prefetch: "none", "next_router", "next_router:n=6". Returns the experts that are guessed for each row,
// top_k where the text does not say; 0 = none. Throws kInvalidArgument (field expert_prefetch).
int64_t parse_prefetch(const std::string& text, int64_t num_experts, int64_t top_k);

// The guess of NextRouter. Test: tests/tiers/test_prefetch.py.
class ExpertPrefetch {
 public:
  // Above so many rows the experts of a step are nearly all, whoever guesses.
  static constexpr int64_t kMaxRows = 8;

  // num_guesses: experts per row, >= 1.
  ExpertPrefetch(Backend& backend, const ModelConfig& config, const ModelWeights& weights, ExpertStore& store,
                 int64_t num_guesses);
  // Has the store read what layer `moe_layer` + 1 may need. x: [T, H] residual stream after the attention of `moe_layer`.
  void hint(int64_t moe_layer, const float* x, int64_t num_rows);

 private:
  ExpertStore& store_;
  int64_t num_experts_, num_guesses_;
  NextRouter router_;
  Guesses guesses_;
};

}  // namespace lynx_rt
