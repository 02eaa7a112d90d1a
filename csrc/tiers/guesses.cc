#include "tiers/guesses.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace lynx_rt {

namespace {
constexpr float kNever = -std::numeric_limits<float>::infinity();
}

void Guesses::begin() { std::fill(best_.begin(), best_.end(), kNever); }

void Guesses::add_row(const float* scores, int64_t n) {
  std::iota(rank_.begin(), rank_.end(), 0);
  std::partial_sort(rank_.begin(), rank_.begin() + n, rank_.end(),
                    [scores](int32_t a, int32_t b) { return scores[a] != scores[b] ? scores[a] > scores[b] : a < b; });
  for (int64_t i = 0; i < n && scores[rank_[size_t(i)]] > kNever; ++i) {
    float& best = best_[size_t(rank_[size_t(i)])];
    best = std::max(best, scores[rank_[size_t(i)]] - scores[rank_[0]]);
  }
}

const std::vector<int32_t>& Guesses::end() {
  experts_.clear();
  for (int32_t e = 0; e < int32_t(best_.size()); ++e)
    if (best_[size_t(e)] > kNever) experts_.push_back(e);
  std::stable_sort(experts_.begin(), experts_.end(), [&](int32_t a, int32_t b) { return best_[size_t(a)] > best_[size_t(b)]; });
  return experts_;
}

}  // namespace lynx_rt
