#include "backend/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace lynx_rt {

namespace {

constexpr float kExcluded = -std::numeric_limits<float>::infinity();

struct Range {
  float min, max;  // of the logits that are not NaN
  bool nan;
};

// In independent lanes, so that a compiler that keeps the meaning of NaN can still use vector instructions.
Range range_of(const float* logits, int64_t n) {
  constexpr int kLanes = 16;
  float min[kLanes], max[kLanes];
  uint32_t nan[kLanes] = {};
  std::fill_n(min, kLanes, -kExcluded);
  std::fill_n(max, kLanes, kExcluded);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) {
      const float x = logits[i + j];
      max[j] = x > max[j] ? x : max[j];
      min[j] = x < min[j] ? x : min[j];
      nan[j] |= uint32_t(x != x);
    }
  for (; i < n; ++i) {
    const float x = logits[i];
    max[0] = x > max[0] ? x : max[0];
    min[0] = x < min[0] ? x : min[0];
    nan[0] |= uint32_t(x != x);
  }
  const bool any = std::any_of(nan, nan + kLanes, [](uint32_t bit) { return bit != 0; });
  return {*std::min_element(min, min + kLanes), *std::max_element(max, max + kLanes), any};
}

}  // namespace

uint64_t mix_bits(uint64_t z) {
  z += 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

double counter_uniform(uint64_t seed, uint64_t position) { return double(mix_bits(mix_bits(seed) ^ position) >> 11) * 0x1p-53; }

int32_t TokenDrawer::draw(const float* logits, int64_t vocab_size, const DrawParams& p) {
  const auto [min, max, nan] = range_of(logits, vocab_size);
  if (nan) return kNanLogit;
  if (max == kExcluded) return kNoToken;
  if (p.temperature < kGreedyTemperature || max == -kExcluded)
    return int32_t(std::find(logits, logits + vocab_size, max) - logits);

  // Candidates in index order, or, where one is left out or top_p needs it, from the most likely down, ties by index.
  const bool by_token = min != kExcluded && (p.top_k <= 0 || p.top_k >= vocab_size) && !(p.top_p < 1.0f);
  order_.clear();
  if (!by_token) {
    for (int64_t i = 0; i < vocab_size; ++i)
      if (logits[i] != kExcluded) order_.push_back(int32_t(i));
    auto more_likely = [&](int32_t a, int32_t b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); };
    if (p.top_k > 0 && size_t(p.top_k) < order_.size()) {
      std::nth_element(order_.begin(), order_.begin() + p.top_k, order_.end(), more_likely);
      order_.resize(size_t(p.top_k));
    }
    std::sort(order_.begin(), order_.end(), more_likely);
  }
  return by_token ? walk(logits, max, size_t(vocab_size), p, [](size_t i) { return int32_t(i); })
                  : walk(logits, max, order_.size(), p, [this](size_t i) { return order_[i]; });
}

template <class Candidate>
int32_t TokenDrawer::walk(const float* logits, float max, size_t count, const DrawParams& p, Candidate candidate) {
  probability_.resize(count);
  for (size_t i = 0; i < count; ++i) probability_[i] = (double(logits[candidate(i)]) - double(max)) / double(p.temperature);
  // Where nothing but min_p filters, exp() of what is far below its threshold is not needed: the roundings of log() and exp()
  // are a few 1e-16 of values up to 150.
  const bool top_p = p.top_p < 1.0f, min_p = p.min_p > 0.0f;
  const double least = min_p && !top_p ? std::log(double(p.min_p)) - 1e-9 : -std::numeric_limits<double>::infinity();
  double sum = 0;
  for (size_t i = 0; i < count; ++i) sum += probability_[i] = probability_[i] < least ? 0.0 : std::exp(probability_[i]);
  size_t n = count;
  if (top_p) {  // the smallest set whose mass reaches top_p
    double mass = 0;
    for (n = 0; n < count && mass < double(p.top_p) * sum; ++n) mass += probability_[n];
    sum = mass;
  }
  if (min_p) {  // the most likely token has weight exp(0) = 1
    sum = 0;
    for (size_t i = 0; i < n; ++i) sum += probability_[i] = probability_[i] >= double(p.min_p) ? probability_[i] : 0.0;
  }
  const double target = p.uniform * sum;
  double cumulative = 0;
  int32_t last = candidate(0);
  for (size_t i = 0; i < n; ++i) {
    if (probability_[i] == 0.0) continue;
    cumulative += probability_[i];
    last = candidate(i);
    if (cumulative > target) break;
  }
  return last;
}

}  // namespace lynx_rt
