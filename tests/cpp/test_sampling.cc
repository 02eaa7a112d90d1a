// Tests csrc/backend/sampling.h: compares the draw with its definition by a full sort, the masses with exp() in long double, and the
// bits of all instruction sets.
#include "backend/sampling.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <random>

#include "backend/cpu/kernels/kernels.h"
#include "check.h"

using namespace lynx_rt;

namespace {

__extension__ using uint128 = unsigned __int128;
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr double kLargestUniform = 1 - 0x1p-53;

std::vector<float> make_logits(int kind, int64_t vocab_size, std::mt19937& random) {
  std::normal_distribution<float> normal(0, 2.5f);
  const float extremes[] = {3e38f, -3e38f, 0.0f, -0.0f, 1e-40f, 88.0f};
  std::vector<float> logits(static_cast<size_t>(vocab_size));
  for (float& z : logits) {
    z = normal(random);
    if (kind == 1) z = std::round(z * 4) / 4;                 // groups of ties
    if (kind == 2) z = random() % 3 ? z : -kInf;              // constraints
    if (kind == 3) z = random() % 2 ? 0.0f : -0.0f;           // all alike
    if (kind == 4) z = extremes[random() % 6];                // huge gaps
    if (kind == 5) z *= 1e-30f;                               // all alike but for their order
    if (kind == 6) z = 20 + z / 1000;                         // many in few bins
    if (kind == 7) z = random() % 2 ? std::round(z) : -kInf;  // ties and constraints
    if (kind == 8) z = z * 1e-3f - 45 * float(random() % 2);  // half of them around the smallest mass
  }
  return logits;
}
constexpr int kKinds = 9;

uint64_t mass_of(float logit, float largest, const DrawParams& p, int64_t vocab_size) {
  uint64_t mass;
  kPortableDrawKernels.masses({largest, std::numbers::log2e / double(p.temperature), mass_of_one(vocab_size), 0}, &logit, 1,
                              &mass);
  return mass;
}

// Draws by the definition, step by step, for finite temperatures and rows with a finite largest logit.
int32_t draw_by_sorting(const std::vector<float>& logits, const DrawParams& p) {
  const auto vocab_size = int64_t(logits.size());
  const float largest = *std::max_element(logits.begin(), logits.end());
  const bool excluded = *std::min_element(logits.begin(), logits.end()) == -kInf;
  const bool top_k = p.top_k > 0 && p.top_k < vocab_size;
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  if (top_k || p.top_p < 1 || excluded)
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[size_t(a)] > logits[size_t(b)]; });
  if (top_k) order.resize(size_t(p.top_k));
  std::vector<uint64_t> mass;
  for (const int32_t token : order) mass.push_back(mass_of(logits[size_t(token)], largest, p, vocab_size));
  if (p.top_p < 1) {
    const uint64_t sum = std::accumulate(mass.begin(), mass.end(), uint64_t(0));
    size_t n = 0;
    for (uint64_t kept = 0; n < mass.size() && double(kept) < double(p.top_p) * double(sum);) kept += mass[n++];
    mass.resize(n);
  }
  const auto least = uint64_t(double(p.min_p) * mass_of_one(vocab_size) + 0.5);
  for (uint64_t& m : mass) m = m >= least ? m : 0;
  const uint64_t sum = std::accumulate(mass.begin(), mass.end(), uint64_t(0));
  const auto target = uint64_t(uint128(uint64_t(p.uniform * 0x1p53)) * sum >> 53);  // below sum
  uint64_t cumulative = 0;
  for (size_t i = 0;; ++i)
    if ((cumulative += mass[i]) > target) return order[i];
}

DrawParams make_params(int64_t vocab_size, std::mt19937& random) {
  const float temperatures[] = {1e-5f, 0.01f, 0.6f, 1, 1, 1.5f, 100, 1e30f};
  const float top_ps[] = {1, 1, 1, 1e-6f, 0.1f, 0.5f, 0.9f, 0.999f};
  const float min_ps[] = {0, 0, 0, 0.02f, 0.5f, 1};
  const int32_t n = int32_t(vocab_size), top_ks[] = {0, 0, 0, 1, 2, 7, 100, n / 2, n - 1, n, n + 1};
  DrawParams p{temperatures[random() % 8], top_ps[random() % 8], min_ps[random() % 6], top_ks[random() % 11], 0};
  p.uniform = counter_uniform(random(), random());
  if (random() % 8 == 0) p.uniform = random() % 2 ? 0 : kLargestUniform;
  return p;
}

void test_against_sorting() {
  std::mt19937 random(1);
  TokenDrawer drawer;
  int not_largest = 0;
  for (const auto& [vocab_size, count] :
       {std::pair<int64_t, int>{1, 20}, {2, 60}, {31, 400}, {32, 100}, {513, 400}, {5000, 300}, {300001, 9}})
    for (int i = 0; i < count; ++i) {
      const std::vector<float> logits = make_logits(i % kKinds, vocab_size, random);
      if (*std::max_element(logits.begin(), logits.end()) == -kInf) continue;
      const DrawParams p = make_params(vocab_size, random);
      const int32_t token = draw_by_sorting(logits, p), got = drawer.draw(logits.data(), vocab_size, p);
      CHECK_EQ(got, token);
      not_largest += token != int32_t(std::max_element(logits.begin(), logits.end()) - logits.begin());
      if (got != token)
        std::cerr << "  V=" << vocab_size << " kind " << i % kKinds << " T " << p.temperature << " top_k " << p.top_k << " top_p "
                  << p.top_p << " min_p " << p.min_p << " uniform " << p.uniform << "\n";
    }
  CHECK(not_largest > 300);
}

void test_greedy_and_errors() {
  std::mt19937 random(2);
  TokenDrawer drawer;
  for (const int64_t n : {1, 2, 33, 1000}) {
    std::vector<float> logits = make_logits(1, n, random);
    const auto largest = int32_t(std::max_element(logits.begin(), logits.end()) - logits.begin());
    CHECK_EQ(drawer.draw(logits.data(), n, {0, 0.5f, 0.5f, 3, 0.9}), largest);
    logits[size_t(n - 1)] = kInf;
    CHECK_EQ(drawer.draw(logits.data(), n, {1, 1, 0, 0, 0.9}), n - 1);
    for (const float nan : {std::nanf(""), -std::nanf("")}) {
      logits[size_t(n / 2)] = nan;
      CHECK_EQ(drawer.draw(logits.data(), n, {0, 1, 0, 0, 0}), kNanLogit);
      CHECK_EQ(drawer.draw(logits.data(), n, {1, 1, 0, 1, 0}), kNanLogit);
    }
    std::fill(logits.begin(), logits.end(), -kInf);
    CHECK_EQ(drawer.draw(logits.data(), n, {1, 0.5f, 0, 2, 0}), kNoToken);
  }
  // Both zeros are equal, so the first wins.
  const float zeros[] = {-1, -0.0f, 0.0f};
  CHECK_EQ(drawer.draw(zeros, 3, {0, 1, 0, 0, 0}), 1);
  const float negative[] = {-3, -2.5f, -1e-45f, -2};
  CHECK_EQ(drawer.draw(negative, 4, {0, 1, 0, 0, 0}), 2);
}

std::vector<int32_t> make_mask(int kind, int64_t vocab_size, std::mt19937& random) {
  std::vector<int32_t> mask(size_t(token_mask_words(vocab_size)), kind == 2 ? -1 : 0);
  for (int64_t i = 0; i < vocab_size; ++i)
    if (kind == 0 && random() % 2) mask[size_t(i / 32)] |= int32_t(1u << (i % 32));
  const auto one = int64_t(random() % uint64_t(vocab_size));
  mask[size_t(one / 32)] |= int32_t(1u << (one % 32));                                // kind 1: this token alone
  if (kind < 2 && vocab_size % 32) mask.back() |= int32_t(~0u << (vocab_size % 32));  // bits after the vocabulary
  return mask;
}

// A draw with a mask equals the draw, by its definition, from logits with -inf for the excluded tokens.
void test_token_masks() {
  std::mt19937 random(5);
  TokenDrawer drawer;
  for (const int64_t n : {1, 2, 31, 32, 33, 63, 64, 65, 1000})
    for (int i = 0; i < 60; ++i) {
      std::vector<float> logits = make_logits(i % kKinds, n, random);
      const std::vector<int32_t> mask = make_mask(i % 3, n, random);
      std::vector<float> allowed = logits;
      int64_t num_allowed = 0, last = 0;
      for (int64_t v = 0; v < n; ++v) {
        const bool is_set = uint32_t(mask[size_t(v / 32)]) >> (v % 32) & 1;
        if (is_set) ++num_allowed, last = v;
        if (!is_set) allowed[size_t(v)] = -kInf;
      }
      CHECK(num_allowed > 0 && (i % 3 != 1 || num_allowed == 1) && (i % 3 != 2 || num_allowed == n));
      DrawParams p = make_params(n, random);
      if (i % 4 == 0) p.temperature = 0;
      const float largest = *std::max_element(allowed.begin(), allowed.end());
      int32_t want = largest == -kInf        ? kNoToken
                     : p.temperature < 1e-5f ? int32_t(std::find(allowed.begin(), allowed.end(), largest) - allowed.begin())
                                             : draw_by_sorting(allowed, p);
      CHECK_EQ(drawer.draw(logits.data(), n, p, mask.data()), want);
      if (i % 3 == 1 && largest > -kInf) CHECK_EQ(want, last);
      std::vector<int32_t> none(mask.size(), 0);
      if (n % 32) none.back() = int32_t(~0u << (n % 32));
      CHECK_EQ(drawer.draw(logits.data(), n, p, none.data()), kNoToken);
      logits[size_t(n / 2)] = std::nanf("");  // reported wherever it is
      CHECK_EQ(drawer.draw(logits.data(), n, p, mask.data()), kNanLogit);
    }
}

// Checks the error bound that draw_kernels.h states.
void test_masses() {
  std::mt19937 random(3);
  std::vector<float> logits(2000);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = 7 - float(i) * 40 / 2000;
  for (const float temperature : {0.3f, 1.0f, 1.7f}) {
    std::vector<uint64_t> mass(logits.size());
    const MassRule rule{7, std::numbers::log2e / double(temperature), 0x1p45, 0};
    const uint64_t sum = kPortableDrawKernels.masses(rule, logits.data(), int64_t(logits.size()), mass.data());
    CHECK_EQ(sum, std::accumulate(mass.begin(), mass.end(), uint64_t(0)));
    CHECK_EQ(mass[0], uint64_t(1) << 45);
    long double worst = 0;
    for (size_t i = 0; i < logits.size(); ++i) {
      const long double weight = std::exp((static_cast<long double>(logits[i]) - 7) / static_cast<long double>(temperature));
      worst = std::max(worst, std::abs(weight * 0x1p45L - static_cast<long double>(mass[i])));
    }
    CHECK(worst < 1);
    CHECK(worst > 0.25L);  // otherwise nothing was compared
  }
  CHECK_EQ(mass_of_one(1), 0x1p45);
  CHECK_EQ(mass_of_one((1 << 18) - 1), 0x1p45);
  for (const int64_t n : {int64_t(1) << 18, int64_t(1) << 19, int64_t(1) << 30}) CHECK(mass_of_one(n) * double(n) < 0x1p63);
}

void test_instruction_sets_agree() {
  std::mt19937 random(4);
  for (const Isa isa : supported_isas())
    for (const int64_t n : {0, 1, 2, 7, 8, 15, 16, 17, 33, 64, 511, 1000})
      for (int kind = 0; kind < kKinds; ++kind) {
        const DrawKernels kernels = cpu::kernels_for(isa).draw;
        std::vector<float> logits = make_logits(kind, n, random);
        const MassRule rule{n ? *std::max_element(logits.begin(), logits.end()) : 0, 1.7, 0x1p45, uint64_t(kind % 2) << 20};
        if (rule.largest == -kInf) continue;
        std::vector<uint64_t> mass(size_t(n) + 1, 77), want_mass(size_t(n) + 1, 77);
        CHECK_EQ(kernels.masses(rule, logits.data(), n, mass.data()),
                 kPortableDrawKernels.masses(rule, logits.data(), n, want_mass.data()));
        CHECK(mass == want_mass);
        std::vector<int16_t> bin(size_t(n) + 1, -7), want_bin(size_t(n) + 1, -7);
        kernels.bins(rule.largest, 30, 1000, logits.data(), n, bin.data());
        kPortableDrawKernels.bins(rule.largest, 30, 1000, logits.data(), n, want_bin.data());
        CHECK(bin == want_bin);
        if (n > 3 && kind == 0) logits[3] = -std::nanf("");
        const KeyRange got = kernels.range(logits.data(), n), want = kPortableDrawKernels.range(logits.data(), n);
        CHECK_EQ(got.min, want.min);
        CHECK_EQ(got.max, want.max);
      }
}

}  // namespace

int main() {
  test_against_sorting();
  test_greedy_and_errors();
  test_token_masks();
  test_masses();
  test_instruction_sets_agree();
  return check::result("test_sampling");
}
