// route() against the CPU's Selector and dispatch_pairs(): ids, lists and counters exactly, weights to 1e-6.
//   test_route [n]   every n-th case; the options are those of SIMT_COPY and SIMT_SEED
#include "backend/cuda/route.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "backend/cpu/dispatch.h"
#include "backend/cpu/select.h"
#include "check.h"

using namespace lynx_rt;

namespace {

constexpr int32_t kUntouched = -77;

// One launch configuration with its buffers, which replays reuse.
struct Case {
  int max_rows, num_experts, top_k;
  Selection selection;
  bool norm_topk = true;
  Phase phase = Phase::kDecodeOnly;
  std::vector<float> scores;   // [T, E]
  std::vector<uint8_t> exact;  // [T] or empty

  std::string text() const {
    return "T=" + std::to_string(max_rows) + " E=" + std::to_string(num_experts) + " k=" + std::to_string(top_k) + " policy " +
           std::to_string(int(selection.policy)) + " alpha " + std::to_string(selection.alpha) + " beta " +
           std::to_string(selection.beta) + " theta " + std::to_string(selection.theta) + " k0 " + std::to_string(selection.k0) +
           " norm " + std::to_string(norm_topk) + " exact " + std::to_string(exact.size()) + " phase " +
           std::to_string(int(phase));
  }
};

struct Output {
  std::vector<int32_t> ids, active, offsets, row_of_pair, pair_of_row;
  std::vector<float> weights;
  int32_t num_active = kUntouched;
  cuda::RouteStats stats = {};

  explicit Output(const Case& c)
      : ids(c.max_rows * c.top_k, kUntouched),
        active(c.num_experts, kUntouched),
        offsets(c.num_experts + 1, kUntouched),
        row_of_pair(ids),
        pair_of_row(ids),
        weights(ids.size(), -1.0f) {}
};

void run_device(const Case& c, int num_rows, Output& out) {
  const int32_t rows = num_rows;
  cuda::RouteArgs args;
  args.scores = c.scores.data();
  args.num_rows = &rows;
  args.exact = c.exact.empty() ? nullptr : c.exact.data();
  args.ids = out.ids.data();
  args.weights = out.weights.data();
  args.active = out.active.data();
  args.num_active = &out.num_active;
  args.offsets = out.offsets.data();
  args.row_of_pair = out.row_of_pair.data();
  args.pair_of_row = out.pair_of_row.data();
  args.stats = &out.stats;
  args.max_rows = c.max_rows;
  args.rule = {c.num_experts, c.top_k, c.norm_topk};
  args.selection = c.selection;
  args.phase = c.phase;
  cuda::route(args, nullptr);
}

// The same from the CPU's code; rows beyond num_rows as route.h says.
Output run_host(const Case& c, int num_rows, Selector& selector) {
  Output out(c);
  std::fill(out.ids.begin(), out.ids.end(), -1);
  std::fill(out.weights.begin(), out.weights.end(), 0.0f);
  const RouterRule rule{c.num_experts, c.top_k, c.norm_topk};
  Routing routing{out.ids.data(), out.weights.data(), out.active.data(), 0};
  out.stats.selection =
      selector.run(c.scores.data(), num_rows, rule, c.selection, c.phase, c.exact.empty() ? nullptr : c.exact.data(), routing);
  out.num_active = routing.num_active;
  DispatchPlan plan{out.offsets.data(), out.row_of_pair.data(), out.pair_of_row.data()};
  dispatch_pairs(routing, c.max_rows, rule, plan);
  return out;
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(double(a[i]) - b[i]);
    if (!(difference <= most)) most = difference;  // NaN stays
  }
  return most;
}

struct Coverage {
  int acted = 0, changed = 0, guard_hits = 0;
} coverage;

void compare(const Case& c, int num_rows, Output& got, Selector& selector) {
  const int failures_before = check::failures;
  run_device(c, num_rows, got);
  // Both leave what lies behind the ends of the lists alone; the device's buffers may hold an earlier result there.
  Output want = run_host(c, num_rows, selector);
  const int32_t num_pairs = want.offsets.back();
  std::copy(got.active.begin() + want.num_active, got.active.end(), want.active.begin() + want.num_active);
  std::copy(got.pair_of_row.begin() + num_pairs, got.pair_of_row.end(), want.pair_of_row.begin() + num_pairs);

  CHECK(got.ids == want.ids);
  CHECK(largest_difference(got.weights, want.weights) <= 1e-6);
  CHECK_EQ(got.num_active, want.num_active);
  CHECK(got.active == want.active);
  CHECK(got.offsets == want.offsets);
  CHECK(got.row_of_pair == want.row_of_pair);
  CHECK(got.pair_of_row == want.pair_of_row);
  const SelectionStats &g = got.stats.selection, &w = want.stats.selection;
  CHECK_EQ(g.rows, w.rows);
  CHECK_EQ(g.union_before, w.union_before);
  CHECK_EQ(g.active, w.active);
  CHECK_EQ(g.remapped_pairs, w.remapped_pairs);
  CHECK(std::abs(g.retained_mass - w.retained_mass) <= 1e-6 * w.retained_mass + 1e-9);
  CHECK_EQ(g.acted, w.acted);
  CHECK_EQ(g.guard_hit, w.guard_hit);
  CHECK_EQ(got.stats.first_bad, -1);
  coverage.acted += w.acted;
  coverage.changed += w.remapped_pairs > 0;
  coverage.guard_hits += w.guard_hit;
  if (check::failures != failures_before) std::cerr << "  in " << c.text() << ", rows " << num_rows << "\n";
}

// Scores of four kinds: continuous; quarters (ties, and gaps on the edges of bins); all alike; extreme and zeros of either sign.
std::vector<float> make_scores(int kind, size_t count, std::mt19937& random) {
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> scores(count);
  for (float& z : scores) {
    z = normal(random);
    if (kind == 1) z = std::round(z * 4) / 4;
    if (kind == 2) z = 0.5f;
    if (kind == 3) {
      const float choices[] = {-0.0f, 0.0f, 3e38f, -3e38f, 1e-40f, 200.0f, z};
      z = choices[random() % 7];
    }
  }
  return scores;
}

Case make_case(int max_rows, int num_experts, int variant, std::mt19937& random) {
  Case c{max_rows, num_experts, 1 + int(random() % 8), {}, true, Phase::kDecodeOnly, {}, {}};
  c.top_k = std::min(c.top_k, num_experts);
  c.selection.policy = variant == 0 ? Policy::kTopk : variant % 2 ? Policy::kLynx : Policy::kOea;
  const double alphas[] = {8, 1, 1.1, 0.25, 1e-35};
  const double thetas[] = {1, 0.3, 2, 2.5, 100, 0, 1e300};
  c.selection.alpha = alphas[random() % 5];
  c.selection.beta = 1 + int(random() % 16);
  c.selection.theta = thetas[random() % 7];
  c.selection.k0 = 1 + int(random() % c.top_k);
  if (variant <= 2) c.selection = {c.selection.policy, 8, 4, 1, 1};  // the defaults
  c.norm_topk = random() % 2;
  if (random() % 8 == 0) c.phase = random() % 2 ? Phase::kPrefill : Phase::kMixed;
  if (random() % 3 == 0) {
    c.exact.resize(max_rows);
    const unsigned every = 1 + random() % 4;
    for (uint8_t& flag : c.exact) flag = random() % every == 0;
  }
  const int kinds[] = {0, 0, 0, 1, 1, 2, 3};
  c.scores = make_scores(kinds[random() % 7], size_t(max_rows) * num_experts, random);
  return c;
}

void test_cases(int every) {
  std::mt19937 random(20);
  Selector selector;
  int number = 0;
  for (const int num_experts : {1, 8, 31, 32, 64, 128, 512})
    for (const int max_rows : {0, 1, 2, 5, 16, 33, 64, 256})
      for (int variant = 0; variant < 7; ++variant) {
        const Case c = make_case(max_rows, num_experts, variant, random);
        if (number++ % every) continue;
        Output out(c);
        compare(c, max_rows, out, selector);
        // The same launch again with another count: a captured graph's replay.
        if (max_rows <= 33) compare(c, int(random() % unsigned(max_rows + 1)), out, selector);
      }
}

// Run whatever every n-th case is: most choices, many fills, several steps of a warp's pairs.
void test_most_choices() {
  std::mt19937 random(21);
  Selector selector;
  for (const int variant : {0, 1, 2, 3}) {
    const int max_rows = variant == 3 ? 200 : 20;
    Case c = make_case(max_rows, 60, variant, random);
    c.top_k = 16;
    c.phase = Phase::kDecodeOnly;
    c.exact.clear();
    c.scores = make_scores(0, c.scores.size(), random);
    if (variant == 3) c.selection = {Policy::kLynx, 0.25, 1, 1e300, 1};  // nobody is confident, nothing is admitted by votes
    Output out(c);
    compare(c, max_rows, out, selector);
    compare(c, 2, out, selector);
  }
}

// A score that is not finite is reported; the lists stay in range.
void test_bad_scores() {
  std::mt19937 random(22);
  for (const float bad : {std::nanf(""), -std::nanf(""), std::numeric_limits<float>::infinity()}) {
    Case c = make_case(5, 40, 1, random);
    c.scores = make_scores(0, c.scores.size(), random);
    std::fill(c.scores.begin() + 3 * 40, c.scores.end(), bad);
    c.scores[2 * 40 + 7] = bad;
    Output out(c);
    run_device(c, 5, out);
    CHECK_EQ(out.stats.first_bad, 2 * 40 + 7);
    for (const int32_t id : out.ids) CHECK(id >= 0 && id < 40);
    run_device(c, 2, out);  // in rows that only pad, it is nobody's business
    CHECK_EQ(out.stats.first_bad, -1);
  }
}

void test_arguments() {
  std::mt19937 random(23);
  const Case good = make_case(4, 8, 2, random);
  Output out(good);
  const auto call = [&](auto change) {
    Case c = good;
    change(c);
    run_device(c, 0, out);
  };
  const auto invalid = ErrorCode::kInvalidArgument;
  CHECK_THROWS(call([](Case& c) { c.max_rows = 257; }), invalid, "route", {"rows", "0..256", "257"});
  CHECK_THROWS(call([](Case& c) { c.num_experts = 513; }), invalid, "route", {"experts", "1..512", "513"});
  CHECK_THROWS(call([](Case& c) { c.top_k = 9; }), invalid, "route", {"1..8", "got 9"});
  CHECK_THROWS(call([](Case& c) { c.selection.k0 = 9; }), invalid, "selection", {"k0", "got 9"});
  CHECK_THROWS(call([](Case& c) { c.selection = {Policy::kLynx, 8, 17, 1, 1}; }), invalid, "selection", {"beta", "got 17"});
}

}  // namespace

int main(int argc, char** argv) {
  const int every = argc > 1 ? std::atoi(argv[1]) : 1;
  test_cases(every);
  test_most_choices();
  test_bad_scores();
  test_arguments();
  if (every == 1) {
    CHECK(coverage.acted > 100);
    CHECK(coverage.changed > 50);
    CHECK(coverage.guard_hits > 5);
  }
  return check::result("test_route");
}
