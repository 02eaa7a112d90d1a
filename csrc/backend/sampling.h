// The draw of a token from a row of logits: temperature, top-k, top-p, min-p and a number from the request's counter. One meaning
// for every backend.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace lynx_rt {

struct DrawParams {
  float temperature = 1;  // < kGreedyTemperature: the largest logit, ties to the lower token, and nothing else matters
  float top_p = 1;        // (0, 1]; 1 = off. The smallest set of most likely tokens whose mass reaches top_p: arXiv 1904.09751
  float min_p = 0;        // [0, 1]; 0 = off. Tokens of at least min_p times the largest probability: arXiv 2407.01082
  int32_t top_k = 0;      // the k largest logits, ties to the lower token; <= 0 or >= V = off
  double uniform = 0;     // [0, 1): counter_uniform() of the request's seed and position
};
inline constexpr float kGreedyTemperature = 1e-5f;

inline constexpr int32_t kNanLogit = -1, kNoToken = -2;

// Scratch that grows to the vocabulary and is then reused. Thread-safety: one draw at a time per object.
class TokenDrawer {
 public:
  // logits [V], -inf = excluded, +inf = certain (the first of them). The token; kNanLogit where a logit is NaN, kNoToken where
  // all are excluded. Order: top_k, then temperature, then top_p, then min_p. Where top_k or top_p filters or a logit is -inf,
  // candidates are walked from the most likely down (ties by token), else by token; the token is the first whose cumulative mass
  // exceeds uniform
  // * mass, in double precision.
  int32_t draw(const float* logits, int64_t vocab_size, const DrawParams& params);

 private:
  // The draw from candidate(0), .., candidate(count - 1), in that order.
  template <class Candidate>
  int32_t walk(const float* logits, float max, size_t count, const DrawParams& params, Candidate candidate);

  std::vector<int32_t> order_;
  std::vector<double> probability_;
};

// The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): a bijection on 64 bits that mixes well.
uint64_t mix_bits(uint64_t z);
// Uniform in [0, 1), a pure function of its arguments.
double counter_uniform(uint64_t seed, uint64_t position);

}  // namespace lynx_rt
