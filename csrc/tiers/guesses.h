// Experts that a step may need, by scores of its rows.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace lynx_rt {

// Returns the experts that are among the n best of some row, the likeliest first. How likely an expert is, is its smallest distance to the
// best score of a row; ties to the lower expert. Experts of score -inf are nobody's guess.
class Guesses {
 public:
  explicit Guesses(int64_t num_experts) : best_(size_t(num_experts)), rank_(size_t(num_experts)) {}
  void begin();
  // scores: [E] of one more row.
  void add_row(const float* scores, int64_t n);
  const std::vector<int32_t>& end();

 private:
  std::vector<float> best_;  // [E] best score of any row, as a distance to the row's best; -inf = nobody's guess
  std::vector<int32_t> rank_, experts_;
};

}  // namespace lynx_rt
