#include "backend/sampling.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numbers>

namespace lynx_rt {

namespace {

__extension__ using uint128 = unsigned __int128;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kBlock = 512;  // tokens whose masses are stored at a time
constexpr int kBins = 4096, kFineBins = 256;
constexpr double kLargestGap = 46.5;  // in powers of two: a token with a larger gap to the largest logit has mass 0

float logit_of(int32_t key) { return std::bit_cast<float>(key < 0 ? key ^ 0x7fffffff : key); }

uint64_t draw_target(double uniform, uint64_t mass) {
  const uint64_t target = uint64_t(uint128(uint64_t(uniform * 0x1p53)) * mass >> 53);
  return std::min(target, mass - 1);
}

// Returns the first index at which the cumulative sum exceeds `target`, which is below the sum of all. Subtracts the sum before
// that index from `target`.
template <class T>
size_t cross(const T* values, uint64_t& target) {
  size_t i = 0;
  for (; target >= values[i]; ++i) target -= values[i];
  return i;
}

// Calls visit(i) for each i < n with first <= bin[i] <= last. A group of 32 without such an i costs few instructions.
template <class Visit>
void for_each_in_bins(const int16_t* bin, int64_t n, int16_t first, int16_t last, Visit visit) {
  constexpr int64_t kGroup = 32;
  for (int64_t begin = 0; begin < n; begin += kGroup) {
    const int64_t end = std::min(begin + kGroup, n);
    if (end - begin == kGroup) {
      int16_t any = 0;
      for (int64_t i = 0; i < kGroup; ++i) any |= int16_t((bin[begin + i] >= first) & (bin[begin + i] <= last));
      if (!any) continue;
    }
    for (int64_t i = begin; i < end; ++i)
      if (bin[i] >= first && bin[i] <= last) visit(i);
  }
}

}  // namespace

const DrawKernels kPortableDrawKernels = kDrawKernels;

uint64_t mix_bits(uint64_t z) {
  z += 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

double counter_uniform(uint64_t seed, uint64_t position) { return double(mix_bits(mix_bits(seed) ^ position) >> 11) * 0x1p-53; }

void apply_token_mask(const float* logits, int64_t vocab_size, const int32_t* mask, float* out) {
  for (int64_t begin = 0; begin < vocab_size; begin += 32) {
    const uint32_t word = uint32_t(mask[begin / 32]);
    const int n = int(std::min<int64_t>(32, vocab_size - begin));
    for (int i = 0; i < n; ++i) {
      const float logit = logits[begin + i];
      out[begin + i] = (word >> i & 1) || std::isnan(logit) ? logit : -kInfinity;
    }
  }
}

double mass_of_one(int64_t vocab_size) { return std::ldexp(1.0, std::min(45, 63 - int(std::bit_width(uint64_t(vocab_size))))); }

struct TokenDrawer::Row {
  const float* logits;
  const int32_t* tokens;  // rising; null = 0, 1, ..
  int64_t n;
  MassRule rule;

  int32_t token(int64_t i) const { return tokens ? tokens[i] : int32_t(i); }
};

struct TokenDrawer::Crossing {
  int32_t token;
  uint64_t mass_through;  // of all tokens up to this one
};

int32_t TokenDrawer::draw(const float* logits, int64_t vocab_size, const DrawParams& p, const int32_t* mask) {
  if (mask) {
    masked_.resize(size_t(vocab_size));
    apply_token_mask(logits, vocab_size, mask, masked_.data());
    logits = masked_.data();
  }
  const KeyRange range = kernels_.range(logits, vocab_size);
  const float largest = logit_of(range.max);
  if (range.max > rising_key(kInfinity) || range.min < rising_key(-kInfinity)) return kNanLogit;
  if (largest == -kInfinity) return kNoToken;
  if (p.temperature < kGreedyTemperature || largest == kInfinity)
    return int32_t(std::find(logits, logits + vocab_size, largest) - logits);

  const double one = mass_of_one(vocab_size);
  const uint64_t min_p_mass = uint64_t(double(p.min_p) * one + 0.5);
  Row row{logits, nullptr, vocab_size, {largest, std::numbers::log2e / double(p.temperature), one, 0}};
  const bool top_k = p.top_k > 0 && p.top_k < vocab_size;
  if (top_k || p.top_p < 1.0f || range.min == rising_key(-kInfinity)) {
    if (top_k) row = keep_top(row, p.top_k);
    return draw_by_likelihood(row, min_p_mass, p);
  }
  row.rule.least = min_p_mass;
  return draw_by_token(row, p.uniform);
}

int32_t TokenDrawer::draw_by_token(const Row& row, double uniform) {
  uint64_t mass[kBlock], sum = 0;
  const auto masses_of_block = [&](int64_t begin) {
    return kernels_.masses(row.rule, row.logits + begin, std::min(kBlock, row.n - begin), mass);
  };
  block_sum_.clear();
  for (int64_t begin = 0; begin < row.n; begin += kBlock) {
    block_sum_.push_back(masses_of_block(begin));
    sum += block_sum_.back();
  }
  uint64_t target = draw_target(uniform, sum);
  const int64_t begin = int64_t(cross(block_sum_.data(), target)) * kBlock;
  masses_of_block(begin);
  return int32_t(begin) + int32_t(cross(mass, target));
}

int32_t TokenDrawer::draw_by_likelihood(const Row& row, uint64_t min_p_mass, const DrawParams& p) {
  find_bins(row);
  bin_mass_.assign(kBins, 0);
  uint64_t sum = 0, min_p_sum = 0;
  for (int64_t begin = 0; begin < row.n; begin += kBlock) {
    const int64_t n = std::min(kBlock, row.n - begin);
    const int16_t* bin = bin_.data() + begin;
    uint64_t mass[kBlock];
    sum += kernels_.masses(row.rule, row.logits + begin, n, mass);
    for (int64_t i = 0; i < n; ++i) bin_mass_[bin[i]] += mass[i];
    if (min_p_mass > 0)
      for (int64_t i = 0; i < n; ++i) min_p_sum += mass[i] >= min_p_mass ? mass[i] : 0;
  }
  // Each filter keeps a prefix of the walk, so the mass of the prefix describes it.
  if (p.top_p < 1.0f) {
    const uint64_t needed = uint64_t(std::ceil(double(p.top_p) * double(sum)));
    sum = descend(row, std::clamp<uint64_t>(needed, 1, sum) - 1).mass_through;
  }
  if (min_p_mass > 0) sum = std::min(sum, min_p_sum);
  return descend(row, draw_target(p.uniform, sum)).token;
}

void TokenDrawer::find_bins(const Row& row) {
  bin_.resize(size_t(row.n));
  kernels_.bins(row.rule.largest, float(kBins / kLargestGap * row.rule.slope), kBins - 1, row.logits, row.n, bin_.data());
}

// Returns the k largest logits, ties to the lower token.
TokenDrawer::Row TokenDrawer::keep_top(const Row& row, int32_t k) {
  find_bins(row);
  bin_count_.assign(kBins, 0);
  for (const int16_t bin : bin_) bin_count_[bin] += 1;
  uint64_t left = uint64_t(k) - 1;
  const int16_t last = int16_t(cross(bin_count_.data(), left));
  // Keeps all tokens of the bins before `last`, and the most likely ones of `last`.
  order_.clear();
  for_each_in_bins(bin_.data(), row.n, last, last, [&](int64_t i) { order_.push_back(int32_t(i)); });
  const auto more_likely = [&](int32_t a, int32_t b) {
    return row.logits[a] > row.logits[b] || (row.logits[a] == row.logits[b] && a < b);
  };
  const auto last_kept = order_.begin() + ptrdiff_t(left);
  std::nth_element(order_.begin(), last_kept, order_.end(), more_likely);
  top_logit_.clear();
  top_token_.clear();
  for_each_in_bins(bin_.data(), row.n, 0, last, [&](int64_t i) {
    if (bin_[size_t(i)] == last && more_likely(*last_kept, int32_t(i))) return;
    top_token_.push_back(int32_t(i));
    top_logit_.push_back(row.logits[i]);
  });
  return {top_logit_.data(), top_token_.data(), k, row.rule};
}

// Returns the token at which the cumulative mass exceeds `target`, from the most likely down, ties by token. Finds the token's bin,
// then a bin of keys within that bin, and so on until one key is left.
TokenDrawer::Crossing TokenDrawer::descend(const Row& row, uint64_t target) {
  const uint64_t whole = target;
  const int16_t found = int16_t(cross(bin_mass_.data(), target));
  order_.clear();
  logit_.clear();
  for_each_in_bins(bin_.data(), row.n, found, found, [&](int64_t i) {
    order_.push_back(row.token(i));
    logit_.push_back(row.logits[i] + 0.0f);  // both zeros are one value
  });
  mass_.resize(order_.size());
  kernels_.masses(row.rule, logit_.data(), int64_t(logit_.size()), mass_.data());
  for (KeyRange keys; (keys = kernels_.range(logit_.data(), int64_t(logit_.size()))), keys.min != keys.max;) {
    int shift = 0;
    while ((uint32_t(keys.max) - uint32_t(keys.min)) >> shift >= kFineBins) ++shift;
    const auto bin_of = [&](size_t i) { return (uint32_t(keys.max) - uint32_t(rising_key(logit_[i]))) >> shift; };
    fine_mass_.assign(kFineBins, 0);
    for (size_t i = 0; i < logit_.size(); ++i) fine_mass_[bin_of(i)] += mass_[i];
    const size_t bin = cross(fine_mass_.data(), target);
    size_t kept = 0;
    for (size_t i = 0; i < logit_.size(); ++i) {
      if (bin_of(i) != bin) continue;
      order_[kept] = order_[i];
      logit_[kept] = logit_[i];
      mass_[kept++] = mass_[i];
    }
    order_.resize(kept);
    logit_.resize(kept);
    mass_.resize(kept);
  }
  const uint64_t each = mass_[0], rank = target / each;
  return {order_[size_t(rank)], whole - target + (rank + 1) * each};
}

}  // namespace lynx_rt
