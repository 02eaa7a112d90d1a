// Compares route() with the CPU's Selector and dispatch_pairs(): own routing, lynx and oea. test_route_policies.cc has the other
// policies.
//   test_route [n]   every n-th case; the options are those of SIMT_COPY and SIMT_SEED
#include "backend/cuda/route/route.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "route_case.h"

using namespace lynx_rt;
using namespace route_case;

namespace {

Case make_case(int max_rows, int num_experts, int variant, std::mt19937& random) {
  Case c{max_rows, num_experts, 1 + int(random() % unsigned(std::min(8, num_experts))), {}, true, Phase::kDecodeOnly, {}, {}};
  c.selection.policy = variant == 0 ? Policy::kTopk : variant % 2 ? Policy::kLynx : Policy::kOea;
  const double alphas[] = {8, 1, 1.1, 0.25, 1e-35};
  const double thetas[] = {1, 0.3, 2, 2.5, 100, 0, 1e300};
  c.selection.alpha = alphas[random() % 5];
  c.selection.beta = 1 + int(random() % 16);
  c.selection.theta = thetas[random() % 7];
  c.selection.k0 = 1 + int(random() % c.top_k);
  if (variant <= 2) c.selection = {.policy = c.selection.policy};  // the defaults
  c.norm_topk = random() % 2;
  if (random() % 8 == 0) c.phase = random() % 2 ? Phase::kPrefill : Phase::kMixed;
  if (random() % 3 == 0) {
    c.exact.resize(max_rows);
    const unsigned every = 1 + random() % 4;
    for (uint8_t& flag : c.exact) flag = random() % every == 0;
  }
  const int kinds[] = {0, 0, 0, 1, 1, 2, 3, 4};
  c.scores = make_scores(kinds[random() % 8], size_t(max_rows) * num_experts, num_experts, random);
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
        Device device(c);
        compare(c, max_rows, device, selector);
        // Launches again with another number of rows, as the replay of a graph does.
        if (max_rows <= 33) compare(c, int(random() % unsigned(max_rows + 1)), device, selector);
      }
}

// Runs many small cases. The scores of padding rows must not matter.
void test_random_cases(int every) {
  std::mt19937 random(24);
  Selector selector;
  for (int number = 0; number < 10000; ++number) {
    const int max_rows = int(random() % (random() % 8 ? 10 : 41)), num_experts = 1 + int(random() % (random() % 2 ? 24 : 160));
    Case c = make_case(max_rows, num_experts, int(random() % 9), random);
    const int num_rows = random() % 2 ? max_rows : int(random() % unsigned(max_rows + 1));
    std::fill(c.scores.begin() + num_rows * num_experts, c.scores.end(), std::nanf(""));
    if (number % every) continue;
    Device device(c);
    compare(c, num_rows, device, selector);
  }
}

// Runs more rows than one block takes, where no policy acts. The last case counts beyond 16 bits.
void test_large(int every) {
  struct Size {
    int max_rows, num_rows, num_experts, top_k, kind;
    Phase phase;
  };
  std::mt19937 random(25);
  Selector selector;
  int number = 0;
  for (const Size& size : {Size{257, 257, 512, 1, 0, Phase::kDecodeOnly}, Size{300, 290, 33, 8, 1, Phase::kPrefill},
                           Size{257, 0, 5, 5, 2, Phase::kMixed}, Size{511, 511, 300, 2, 4, Phase::kMixed},
                           Size{1000, 999, 128, 8, 0, Phase::kPrefill}, Size{700, 700, 100, 16, 3, Phase::kPrefill},
                           Size{2100, 2100, 1, 1, 0, Phase::kMixed}, Size{65536, 65536, 2, 1, 4, Phase::kPrefill}}) {
    if (every > 1 && number++ >= (every > 8 ? 2 : 4)) continue;
    Case c = make_case(size.max_rows, size.num_experts, 1, random);
    c.top_k = size.top_k;
    c.phase = size.phase;
    if (c.phase == Phase::kDecodeOnly) c.selection = {};
    c.scores = make_scores(size.kind, c.scores.size(), c.num_experts, random);
    std::fill(c.scores.begin() + size.num_rows * c.num_experts, c.scores.end(), std::nanf(""));
    Device device(c);
    const std::vector<float> got = compare(c, size.num_rows, device, selector).weights;

    // A row's weights have the same bits in a small step.
    Case few = c;
    few.max_rows = std::min(20, size.num_rows);
    few.phase = Phase::kPrefill;
    few.scores.resize(few.max_rows * c.num_experts);
    few.exact.resize(c.exact.empty() ? 0 : few.max_rows);
    Device small(few);
    const std::vector<float> want = small.run(few, few.max_rows).weights;
    CHECK(std::memcmp(got.data(), want.data(), want.size() * sizeof(float)) == 0);
  }
}

// Always runs: the largest k, many fills, several steps of a warp's pairs.
void test_most_choices() {
  std::mt19937 random(21);
  Selector selector;
  for (const int variant : {0, 1, 2, 3}) {
    const int max_rows = variant == 3 ? 200 : 20;
    Case c = make_case(max_rows, 60, variant, random);
    c.top_k = 16;
    c.phase = Phase::kDecodeOnly;
    c.exact.clear();
    c.scores = make_scores(0, c.scores.size(), 60, random);
    if (variant == 3)
      c.selection = {.policy = Policy::kLynx,
                     .alpha = 0.25,
                     .beta = 1,
                     .theta = 1e300};  // no row is confident, and no expert is admitted by votes
    Device device(c);
    compare(c, max_rows, device, selector);
    compare(c, 2, device, selector);
  }
}

// A non-finite score is reported, and the lists stay in range.
void test_bad_scores() {
  std::mt19937 random(22);
  const float all_ones = std::bit_cast<float>(0xffffffffu);
  for (const float bad : {std::nanf(""), -std::nanf(""), all_ones, std::numeric_limits<float>::infinity()})
    for (const int max_rows : {5, 270}) {
      if (max_rows > cuda::kMaxRouteRows && std::bit_cast<uint32_t>(bad) != 0xffffffffu) continue;
      Case c = make_case(max_rows, 40, 1, random);
      c.phase = Phase::kMixed;
      c.scores = make_scores(0, c.scores.size(), 40, random);
      const int first = max_rows / 2;  // not in the first block
      std::fill(c.scores.begin() + (first + 1) * 40, c.scores.end(), bad);
      c.scores[first * 40 + 7] = bad;
      Device device(c);
      const Output out = device.run(c, max_rows);
      CHECK_EQ(out.first_bad, first * 40 + 7);
      for (const int32_t id : out.ids) CHECK(id >= 0 && id < 40);
      for (const int32_t row : out.sorted_of_pair) CHECK(row >= 0 && row < max_rows * c.top_k);
      CHECK_EQ(device.run(c, first).first_bad, -1);  // in padding rows it is not reported
    }
}

// Without a list of tiles nothing is written to it, and the other outputs are the same.
void test_without_tiles() {
  std::mt19937 random(26);
  for (const int max_rows : {9, 260}) {
    Case c = make_case(max_rows, 20, 2, random);
    c.phase = Phase::kMixed;
    Device device(c);
    const Output without = device.run(c, max_rows, false), with = device.run(c, max_rows);
    CHECK_EQ(without.num_tiles, kUntouched);
    for (const int32_t v : without.tiles) CHECK_EQ(v, kUntouched);
    CHECK(without.ids == with.ids && without.sorted_of_pair == with.sorted_of_pair &&
          without.pair_of_sorted == with.pair_of_sorted);
  }
}

void test_arguments() {
  std::mt19937 random(23);
  const Case good = make_case(4, 8, 2, random);
  const auto call = [&](auto change) {
    Device device(good);
    Case c = good;
    change(c);
    device.run(c, 0);
  };
  const auto invalid = ErrorCode::kInvalidArgument;
  CHECK_THROWS(call([](Case& c) { c.max_rows = 65537; }), invalid, "route", {"rows", "0..65536", "65537"});
  CHECK_THROWS(call([](Case& c) { c.max_rows = 257, c.phase = Phase::kDecodeOnly; }), invalid, "route",
               {"rows", "policy", "0..256", "257"});
  CHECK_THROWS(call([](Case& c) { c.num_experts = 513; }), invalid, "route", {"experts", "1..512", "513"});
  CHECK_THROWS(call([](Case& c) { c.top_k = 9; }), invalid, "route", {"1..8", "got 9"});
  CHECK_THROWS(call([](Case& c) { c.selection.k0 = 9; }), invalid, "selection", {"k0", "got 9"});
  CHECK_THROWS(call([](Case& c) { c.selection = {.policy = Policy::kLynx, .beta = 17}; }), invalid, "selection",
               {"beta", "got 17"});
}

}  // namespace

int main(int argc, char** argv) {
  const int every = argc > 1 ? std::atoi(argv[1]) : 1;
  test_cases(every);
  test_random_cases(every);
  test_large(every);
  test_most_choices();
  test_bad_scores();
  test_without_tiles();
  test_arguments();
  if (every == 1) {
    for (const Policy policy : {Policy::kLynx, Policy::kOea}) {
      CHECK(coverage[int(policy)].acted > 1500);
      CHECK(coverage[int(policy)].changed > 500);
      CHECK(coverage[int(policy)].guard_hits > 150);
    }
  }
  return check::result("test_route");
}
