// The draw of a token from a row of logits: temperature, top-k, top-p, min-p and a number from the request's counter. Every backend
// draws as this file says.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "backend/draw_kernels.h"

namespace lynx_rt {

struct DrawParams {
  float temperature = 1;  // < kGreedyTemperature: takes the largest logit, ties to the lower token; the others are ignored
  float top_p = 1;        // (0, 1]; 1 = off. Keeps the fewest most likely tokens whose mass reaches top_p: arXiv 1904.09751
  float min_p = 0;        // [0, 1]; 0 = off. Keeps tokens of at least min_p times the largest probability: arXiv 2407.01082
  int32_t top_k = 0;      // keeps the k largest logits, ties to the lower token; <= 0 or >= V = off
  double uniform = 0;     // [0, 1): counter_uniform() of the request's seed and position
  int32_t mask_row = -1;  // row of the token masks that the draw comes with; -1 = every token is allowed
};
inline constexpr float kGreedyTemperature = 1e-5f;

inline constexpr int32_t kNanLogit = -1, kNoToken = -2;

// A token mask says which tokens may be drawn: bit v % 32 of word v / 32 is set where token v may be. Bits from V on are ignored.
constexpr int64_t token_mask_words(int64_t vocab_size) { return (vocab_size + 31) / 32; }
// out [V] = logits, -inf for tokens that the mask excludes; a NaN stays NaN. out may be logits.
void apply_token_mask(const float* logits, int64_t vocab_size, const int32_t* mask, float* out);

extern const DrawKernels kPortableDrawKernels;

// Returns the weight 1 as an integer mass for V tokens: 2^45, or less, so that the mass of all stays below 2^63.
double mass_of_one(int64_t vocab_size);

// Draws tokens. Its scratch memory grows to the vocabulary and is then reused. Thread-safety: one draw at a time per object.
class TokenDrawer {
 public:
  explicit TokenDrawer(const DrawKernels& kernels = kPortableDrawKernels) : kernels_(kernels) {}

  // Returns the token, kNanLogit where a logit is NaN, or kNoToken where all tokens are excluded. logits [V], -inf = excluded,
  // +inf = certain (the first such token). Filters apply in the order top_k, temperature, top_p, min_p. Where top_k or top_p filters
  // or a logit is -inf, candidates are walked from the most likely down (ties by token), else by token; the token drawn is the first
  // whose cumulative mass exceeds uniform * mass. A mass is a weight relative to the largest token's, rounded to a multiple of 2^-45:
  // sums of such integers do not depend on their order, so every implementation of a walk draws the same token.
  // mask [token_mask_words(V)] or null: the draw is from the logits that apply_token_mask() makes.
  int32_t draw(const float* logits, int64_t vocab_size, const DrawParams& params, const int32_t* mask = nullptr);

 private:
  struct Row;
  struct Crossing;
  int32_t draw_by_token(const Row& row, double uniform);
  int32_t draw_by_likelihood(const Row& row, uint64_t min_p_mass, const DrawParams& params);
  void find_bins(const Row& row);
  Row keep_top(const Row& row, int32_t k);
  Crossing descend(const Row& row, uint64_t target);

  DrawKernels kernels_;
  std::vector<float> masked_;  // logits of a row with a mask
  std::vector<uint64_t> block_sum_;
  // Bins of equal width in the logit, from the most likely down: the bin of each token of a row; tokens and mass of each bin.
  std::vector<int16_t> bin_;
  std::vector<uint32_t> bin_count_;
  std::vector<uint64_t> bin_mass_, fine_mass_;
  std::vector<int32_t> top_token_, order_;  // tokens that top_k kept; tokens of one bin
  std::vector<float> top_logit_, logit_;
  std::vector<uint64_t> mass_;
};

// The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): a bijection on 64 bits that mixes well.
uint64_t mix_bits(uint64_t z);
// Uniform in [0, 1), a pure function of its arguments.
double counter_uniform(uint64_t seed, uint64_t position);

}  // namespace lynx_rt
