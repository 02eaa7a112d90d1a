// Compares sample() with TokenDrawer, and both with the draw in long double: the token must be the same wherever the uniform number
// and the filters' thresholds are farther from a boundary than roundings reach.
//   test_sample [n]   every n-th case; the options are those of SIMT_COPY and SIMT_SEED
#include "backend/cuda/sample/sample.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "backend/sampling.h"
#include "check.h"
#include "device_array.h"

using namespace lynx_rt;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int32_t kUntouched = -77;
constexpr double kLargestUniform = 1 - 0x1p-53;

struct Batch {
  int vocab_size;
  std::vector<float> logits;        // [S, V]
  std::vector<DrawParams> params;   // [S]
  std::vector<int32_t> masks = {};  // [rows that mask_row names, words]

  int rows() const { return int(params.size()); }
  const float* row(int i) const { return logits.data() + size_t(i) * size_t(vocab_size); }
  void add(const std::vector<float>& row, const DrawParams& p) {
    logits.insert(logits.end(), row.begin(), row.end());
    params.push_back(p);
  }
  // Adds a row with a mask.
  void add(const std::vector<float>& row, const DrawParams& p, const std::vector<int32_t>& mask) {
    add(row, p);
    params.back().mask_row = int32_t(masks.size() / mask.size());
    masks.insert(masks.end(), mask.begin(), mask.end());
  }
};

std::string text(const Batch& b, int row) {
  const DrawParams& p = b.params[size_t(row)];
  return "V=" + std::to_string(b.vocab_size) + " row " + std::to_string(row) + " of " + std::to_string(b.rows()) + " T " +
         std::to_string(p.temperature) + " top_k " + std::to_string(p.top_k) + " top_p " + std::to_string(p.top_p) + " min_p " +
         std::to_string(p.min_p) + " uniform " + std::to_string(p.uniform);
}

std::vector<int32_t> run_device(const Batch& b) {
  const size_t rows = b.params.size();
  const DeviceVector<float> logits(b.logits);
  const DeviceVector<DrawParams> params(b.params);
  const DeviceVector<int32_t> masks(b.masks);
  const DeviceVector<int32_t> tokens(std::vector<int32_t>(rows + 2, kUntouched));
  cuda::sample({logits.get(), params.get(), b.rows(), b.vocab_size, masks.get(), tokens.get() + 1}, {});
  std::vector<int32_t> out = tokens.read();
  CHECK_EQ(out.front(), kUntouched);
  CHECK_EQ(out.back(), kUntouched);
  return {out.begin() + 1, out.end() - 1};
}

int32_t run_host(const Batch& b, int row) {
  static TokenDrawer drawer;
  return drawer.draw(b.row(row), b.vocab_size, b.params[size_t(row)]);
}

// --- the draw in long double

struct Reference {
  int32_t token;
  bool decided;       // roundings cannot lead to another token
  double end;         // the uniform number from which on another token is drawn
  double resolution;  // uniform numbers at this distance from `end` are decided
};

// Rows without NaN and +inf that are not all -inf, temperature from kGreedyTemperature on.
//
// Roundings, in units of the largest weight. Both take the weight exp(-x) as a multiple of 2^-45: off by 2^-46. In sample(), x is
// off by three relative roundings, which change exp(-x) by 3 * 2^-53 x exp(-x) < 2^-52, and exp() by an ulp, 2^-52; exp(-x) of x
// above 32 counts as 0 and is < 2^-46. TokenDrawer: draw_kernels.h. Together less than 2^-45 per token in either. `slack` is that
// of a row, twice: a target is a share of a sum that is off, compared with a sum that is off.
Reference reference(const float* logits, int vocab_size, const DrawParams& p) {
  std::vector<int32_t> order;
  for (int32_t i = 0; i < vocab_size; ++i)
    if (logits[i] != -kInf) order.push_back(i);
  const float max = *std::max_element(logits, logits + vocab_size);
  const bool top_k = p.top_k > 0 && size_t(p.top_k) < order.size();
  if (top_k || order.size() < size_t(vocab_size) || p.top_p < 1)
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  if (top_k) order.resize(size_t(p.top_k));

  size_t n = order.size();
  std::vector<long double> weight(n);
  bool exact = true;  // all weights are 1 or 0: nothing rounds
  for (size_t i = 0; i < n; ++i) {
    const long double gap = (static_cast<long double>(max) - logits[order[i]]) / p.temperature;
    weight[i] = std::exp(-gap);
    exact = exact && (gap == 0 || gap > 800);
  }
  long double sum = std::accumulate(weight.begin(), weight.end(), 0.0L);
  const long double slack = exact ? 0 : 2 * 0x1p-45L * static_cast<long double>(n);
  bool decided = true;

  if (p.top_p < 1) {
    const long double needed = sum * p.top_p;
    long double mass = 0, before = 0;
    for (n = 0; n < order.size() && mass < needed; ++n) before = mass, mass += weight[n];
    if (mass - needed < slack && n < order.size() && weight[n] > 0) decided = false;
    if (needed - before <= slack && n > 1 && !exact) decided = false;
    sum = mass;
  }
  if (p.min_p > 0) {
    sum = 0;
    for (size_t i = 0; i < n; ++i) {
      // 1 in long double is 1 in double.
      if (weight[i] != 1 && std::abs(weight[i] - p.min_p) <= 0x1p-44L) decided = false;
      if (weight[i] < p.min_p) weight[i] = 0;
      sum += weight[i];
    }
  }
  const long double target = sum * p.uniform;
  int32_t token = order[0];
  long double mass = 0;
  for (size_t i = 0; i < n; ++i) {
    if (weight[i] == 0) continue;
    const long double before = mass;
    mass += weight[i];
    token = order[i];
    if (!(mass > target)) continue;
    const bool last =
        std::all_of(weight.begin() + ptrdiff_t(i) + 1, weight.begin() + ptrdiff_t(n), [](auto w) { return w == 0; });
    if (mass - target <= slack && !last && !exact) decided = false;
    if (target - before <= slack && before > 0 && !exact) decided = false;
    break;
  }
  return {token, decided, double(mass / sum), double(2 * slack / sum)};
}

struct Coverage {
  int draws = 0, undecided = 0, filtered = 0, not_largest = 0;
} coverage;

// Compares every row of a batch with TokenDrawer and with long double.
void compare(const Batch& b) {
  const std::vector<int32_t> got = run_device(b);
  for (int i = 0; i < b.rows(); ++i) {
    const int failures_before = check::failures;
    const DrawParams& p = b.params[size_t(i)];
    const float* logits = b.row(i);
    const int32_t want = run_host(b, i);
    const auto max = int32_t(std::max_element(logits, logits + b.vocab_size) - logits);
    if (p.temperature < kGreedyTemperature) {
      CHECK_EQ(got[size_t(i)], logits[max] == -kInf ? kNoToken : max);
      CHECK_EQ(want, got[size_t(i)]);
    } else if (logits[max] == -kInf) {
      CHECK_EQ(got[size_t(i)], kNoToken);
      CHECK_EQ(want, kNoToken);
    } else {
      const Reference r = reference(logits, b.vocab_size, p);
      if (r.decided) {
        CHECK_EQ(got[size_t(i)], r.token);
        CHECK_EQ(want, r.token);
      }
      // A draw at the very end of the range is within rounding of a boundary by construction.
      if (p.uniform != kLargestUniform) coverage.draws += 1, coverage.undecided += !r.decided;
      coverage.filtered += p.top_k > 0 || p.top_p < 1 || p.min_p > 0;
      coverage.not_largest += r.token != max;
    }
    if (check::failures != failures_before) std::cerr << "  in " << text(b, i) << "\n";
  }
}

// --- cases

constexpr int kKinds = 9;
std::vector<float> make_logits(int kind, int vocab_size, std::mt19937& random) {
  std::normal_distribution<float> normal(0, 2.5f);
  std::vector<float> logits(static_cast<size_t>(vocab_size));
  const float extremes[] = {3e38f, -3e38f, 0.0f, -0.0f, 1e-40f, 88.0f};
  for (float& z : logits) {
    z = normal(random);
    if (kind == 1) z = std::round(z * 4) / 4;                        // groups of ties
    if (kind == 2) z = random() % 3 ? z : -kInf;                     // constraints
    if (kind == 3) z = random() % 2 ? 0.0f : -0.0f;                  // all alike
    if (kind == 4) z = extremes[random() % 6];                       // huge gaps
    if (kind == 5) z *= 1e-30f;                                      // all alike but for their order
    if (kind == 6) z = 20 + z / 100;                                 // many in few bins
    if (kind == 7) z = random() % 2 ? std::round(z) : -kInf;         // ties and constraints
    if (kind == 8) z = std::round(z * 2) / 2 - (random() % 3) * 30;  // two thirds weigh next to nothing
  }
  return logits;
}

DrawParams make_params(int vocab_size, std::mt19937& random) {
  const float temperatures[] = {1e-6f, 1e-5f, 0.01f, 0.6f, 1, 1, 1.5f, 100};
  const float top_ps[] = {1, 1, 1, 1e-6f, 0.1f, 0.5f, 0.9f, 0.999f};
  const float min_ps[] = {0, 0, 0, 0.02f, 0.5f, 1};
  const int top_ks[] = {0, 0, -1, 1, 2, 7, 100, vocab_size - 1, vocab_size, vocab_size + 1};
  DrawParams p;
  p.temperature = temperatures[random() % 8];
  p.top_p = top_ps[random() % 8];
  p.min_p = min_ps[random() % 6];
  p.top_k = top_ks[random() % 10];
  p.uniform = counter_uniform(random(), random());
  if (random() % 12 == 0) p.uniform = random() % 2 ? 0 : kLargestUniform;
  return p;
}

void test_cases(int every) {
  std::mt19937 random(30);
  int number = 0;
  for (const auto& [vocab_size, batches] : {std::pair{1, 8}, {2, 24}, {31, 60}, {1000, 54}, {4097, 18}, {9001, 3}})
    for (int i = 0; i < batches; ++i) {
      Batch b{vocab_size, {}, {}};
      const int rows = 1 + int(random() % 3);
      for (int row = 0; row < rows; ++row)
        b.add(make_logits((i + row) % kKinds, vocab_size, random), make_params(vocab_size, random));
      if (number++ % every == 0) compare(b);
    }
}

// Tests the parameters on two rows of 300 logits: each filter at its edges, with uniform numbers over the whole range.
void test_filters(int every) {
  std::mt19937 random(31);
  const std::vector<DrawParams> filters = {{1, 1, 0, 0, 0},        {1, 1, 0, 299, 0},    {1, 1, 0, 300, 0},
                                           {1, 1, 0, 1, 0},        {1, 1e-40f, 0, 0, 0}, {1, 0.3f, 0, 0, 0},
                                           {1, 0.9999f, 0, 0, 0},  {1, 1, 1, 0, 0},      {1, 1, 0.01f, 0, 0},
                                           {2, 0.8f, 0.2f, 20, 0}, {100, 0.5f, 0, 0, 0}, {0.1f, 0.95f, 0, 50, 0}};
  int number = 0;
  for (const DrawParams& filter : filters) {
    Batch b{300, {}, {}};
    for (const int kind : {0, 1}) {
      const std::vector<float> logits = make_logits(kind, 300, random);
      for (const double uniform : {0.0, 0.2, 0.7, 0.999, kLargestUniform}) {
        b.add(logits, filter);
        b.params.back().uniform = uniform;
      }
    }
    if (number++ % every == 0) compare(b);
  }
}

// Tests uniform numbers on both sides of a boundary, as near to it as roundings allow.
void test_near_boundaries(int every) {
  std::mt19937 random(34);
  const std::vector<DrawParams> filters = {{1, 1, 0, 0, 0}, {0.7f, 1, 0.001f, 0, 0}, {1, 0.95f, 0, 0, 0}, {3, 1, 0, 300, 0}};
  int number = 0;
  for (const DrawParams& filter : filters)
    for (const int kind : {0, 6}) {
      Batch draws{1000, {}, {}};
      const std::vector<float> logits = make_logits(kind, 1000, random);
      for (int i = 0; i < 4; ++i) {
        DrawParams p = filter;
        p.uniform = 0.2 * (i + counter_uniform(35, random()));
        const Reference r = reference(logits.data(), 1000, p);
        for (const int side : {-1, 1}) {
          p.uniform = r.end + side * r.resolution;
          draws.add(logits, p);
          CHECK(reference(logits.data(), 1000, p).decided);
        }
      }
      if (number++ % every == 0) compare(draws);
    }
}

// The first of several largest logits wins, however far apart they are and whichever threads read them.
void test_greedy_ties() {
  std::mt19937 random(36);
  Batch b{1000, {}, {}};
  for (int i = 0; i < 30; ++i) {
    std::vector<float> logits = make_logits(0, 1000, random);
    for (int j = 0; j < 5; ++j) logits[random() % 1000] = 50;
    b.add(logits, {i % 2 ? 0.0f : 1.0f, 1, 0, i % 2 ? 0 : 1, 0.9});
  }
  compare(b);
}

// Equal logits weigh exactly 1, so nothing rounds, even where a target is on a boundary.
void test_ties_are_exact(int every) {
  Batch b{64, {}, {}};
  for (const int excluded : {0, 24, 63}) {
    std::vector<float> logits(64, -1.5f);
    std::fill_n(logits.begin() + (excluded == 63 ? 0 : 3), excluded, -kInf);
    const int n = 64 - excluded;
    for (const double uniform : {0.0, 0.25, 0.5, 1.0 - 0x1p-6, kLargestUniform})
      for (const DrawParams& p : {DrawParams{0.3f, 1, 0, 0, uniform},
                                  {1, 0.5f, 0, 0, uniform},
                                  {1, 1, 1, 0, uniform},
                                  {1, 1, 0, 8, uniform},
                                  {1, 0.75f, 0.5f, 16, uniform}}) {
        b.add(logits, p);
        // The expected token is number floor(uniform * m) of the first m tokens that are not excluded.
        int m = p.top_k > 0 ? std::min(n, p.top_k) : n;
        if (p.top_p < 1) m = int(std::ceil(m * double(p.top_p)));
        int left = int(std::floor(uniform * m)), token = 0;
        while (logits[size_t(token)] == -kInf || left-- > 0) ++token;
        CHECK_EQ(run_host(b, b.rows() - 1), token);
      }
  }
  const std::vector<int32_t> got = run_device(b);
  for (int i = 0; i < b.rows(); i += every) CHECK_EQ(got[size_t(i)], run_host(b, i));
}

// A row's token is the same alone, in another place, and beside other rows.
void test_rows_are_independent() {
  std::mt19937 random(32);
  Batch all{500, {}, {}}, reversed{500, {}, {}};
  for (int i = 0; i < 12; ++i) all.add(make_logits(i % kKinds, 500, random), make_params(500, random));
  all.logits[3 * 500 + 77] = std::nanf("");
  std::fill_n(all.logits.begin() + 5 * 500, 500, -kInf);
  all.logits[8 * 500 + 499] = kInf;
  for (int i = 11; i >= 0; --i) reversed.add({all.row(i), all.row(i) + 500}, all.params[size_t(i)]);
  const std::vector<int32_t> got = run_device(all);
  std::vector<int32_t> again = run_device(reversed);
  std::reverse(again.begin(), again.end());
  CHECK(got == again);
  for (int i = 0; i < 12; ++i) {
    Batch one{500, {}, {}};
    one.add({all.row(i), all.row(i) + 500}, all.params[size_t(i)]);
    CHECK_EQ(run_device(one)[0], got[size_t(i)]);
  }
}

// NaN anywhere is reported, whatever the parameters; the first +inf is drawn.
void test_not_finite() {
  std::mt19937 random(33);
  const std::vector<DrawParams> kinds = {{0, 1, 0, 0, 0.5},    {1, 1, 0, 0, 0.5},   {1, 0.5f, 0, 0, 0.5}, {1, 1, 0.1f, 0, 0.5},
                                         {1, 1, 0.1f, 5, 0.5}, {1, 1, 0, 2, 0.999}, {1, 0.9f, 0.1f, 2, 0}};
  Batch nans{131, {}, {}}, infinities{131, {}, {}};
  for (const DrawParams& p : kinds) {
    for (const size_t at : {0, 64, 127, 130})
      for (const float nan : {std::nanf(""), -std::nanf("")}) {
        std::vector<float> logits = make_logits(int(at % 3), 131, random);
        logits[at] = nan;
        logits[60] = at == 64 ? kInf : -kInf;
        nans.add(logits, p);
      }
    for (const int count : {1, 4})
      for (const bool excluded : {false, true}) {
        std::vector<float> logits = make_logits(1, 131, random);
        for (int i = 0; i < count; ++i) logits[size_t(30 * i + 37)] = kInf;
        if (excluded) logits[0] = -kInf;
        infinities.add(logits, p);
      }
  }
  for (const int32_t token : run_device(nans)) CHECK_EQ(token, kNanLogit);
  for (int i = 0; i < nans.rows(); ++i) CHECK_EQ(run_host(nans, i), kNanLogit);
  const std::vector<int32_t> got = run_device(infinities);
  for (int i = 0; i < infinities.rows(); ++i) {
    CHECK_EQ(got[size_t(i)], 37);
    CHECK_EQ(run_host(infinities, i), 37);
  }
}

// A row with a mask, among rows without, has the token of the row whose excluded logits are -inf.
void test_token_masks(int every) {
  std::mt19937 random(37);
  int number = 0;
  for (const int vocab_size : {1, 31, 32, 33, 64, 1000, 4097}) {
    Batch with{vocab_size, {}, {}}, without{vocab_size, {}, {}};
    for (int i = 0; i < 24; ++i) {
      std::vector<float> logits = make_logits(i % kKinds, vocab_size, random);
      DrawParams p = make_params(vocab_size, random);
      if (i % 5 == 0) p.temperature = 0;
      std::vector<int32_t> mask(size_t(token_mask_words(vocab_size)), i % 4 == 2 ? -1 : 0);
      const auto allow = [&](int v) { mask[size_t(v / 32)] |= int32_t(1u << (v % 32)); };
      for (int v = 0; v < vocab_size; ++v)
        if (i % 4 == 0 && random() % 2) allow(v);
      if (i % 4 < 2) allow(int(random() % unsigned(vocab_size)));  // 1: one token; 3: none
      if (vocab_size % 32) mask.back() |= int32_t(~0u << (vocab_size % 32));
      if (i % 7 == 6) {
        with.add(logits, p);
      } else {
        with.add(logits, p, mask);
        for (int v = 0; v < vocab_size; ++v)
          if (!(uint32_t(mask[size_t(v / 32)]) >> (v % 32) & 1)) logits[size_t(v)] = -kInf;
      }
      without.add(logits, p);
    }
    // NaN is tested under a mask that excludes it, +inf under one that excludes it and one that does not.
    const std::vector<int32_t> all(size_t(token_mask_words(vocab_size)), -1), none(all.size(), 0);
    std::vector<float> logits(size_t(vocab_size), 1.0f);
    logits.back() = std::nanf("");
    with.add(logits, {1, 1, 0, 0, 0.3}, none);
    without.add(logits, {1, 1, 0, 0, 0.3});
    logits.back() = kInf;
    with.add(logits, {1, 1, 0, 0, 0.3}, all);
    without.add(logits, {1, 1, 0, 0, 0.3});
    with.add(logits, {1, 1, 0, 0, 0.3}, none);
    without.add(std::vector<float>(size_t(vocab_size), -kInf), {1, 1, 0, 0, 0.3});
    if (number++ % every) continue;
    const std::vector<int32_t> got = run_device(with), want = run_device(without);
    for (int i = 0; i < with.rows(); ++i) {
      const DrawParams& p = with.params[size_t(i)];
      const int32_t* mask = p.mask_row < 0 ? nullptr : with.masks.data() + size_t(p.mask_row) * all.size();
      TokenDrawer drawer;
      CHECK_EQ(got[size_t(i)], want[size_t(i)]);
      CHECK_EQ(drawer.draw(with.row(i), vocab_size, p, mask), run_host(without, i));
      if (check::failures) std::cerr << "  in " << text(with, i) << "\n";
    }
    CHECK_EQ(got[3], kNoToken);
    CHECK_EQ(got[24], kNanLogit);
    CHECK_EQ(got[25], vocab_size - 1);
    CHECK_EQ(got[26], kNoToken);
  }
}

void test_arguments() {
  const DeviceVector<int32_t> token(std::vector<int32_t>{kUntouched});
  const auto call = [&](int rows, int vocab_size) {
    cuda::sample({nullptr, nullptr, rows, vocab_size, nullptr, token.get()}, {});
  };
  const auto invalid = ErrorCode::kInvalidArgument;
  CHECK_THROWS(call(-1, 8), invalid, "sample", {"rows", "got -1"});
  CHECK_THROWS(call(1, 0), invalid, "sample", {"vocabulary", "got 0"});
  CHECK_THROWS(call(1, 262145), invalid, "sample", {"1..262144", "got 262145"});
  call(0, 8);
  CHECK_EQ(token.read()[0], kUntouched);
}

}  // namespace

int main(int argc, char** argv) {
  const int every = argc > 1 ? std::atoi(argv[1]) : 1;
  test_cases(every);
  test_filters(every);
  test_near_boundaries(every);
  test_ties_are_exact(every);
  test_greedy_ties();
  test_rows_are_independent();
  test_not_finite();
  test_token_masks(every);
  test_arguments();
  CHECK(coverage.undecided * 100 < coverage.draws);
  if (every == 1) {
    CHECK(coverage.draws > 300);
    CHECK(coverage.filtered > 200);
    CHECK(coverage.not_largest > 100);
  }
  return check::result("test_sample");
}
