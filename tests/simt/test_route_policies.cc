// Compares route() with the CPU's Selector: the policies that test_route.cc does not test, and the common parts of all policies.
//   test_route_policies [n]   every n-th case; the options are those of SIMT_COPY and SIMT_SEED
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "route_policy_case.h"

using namespace lynx_rt;
using namespace route_case;

namespace {

constexpr Policy kRefilling[] = {Policy::kLynx,    Policy::kOea,   Policy::kXshare,
                                 Policy::kDesVote, Policy::kCover, Policy::kLynxLiteral};

void test_cases(int every) {
  std::mt19937 random(30);
  Selector selector;
  for (const int num_experts : {1, 8, 31, 32, 100, 256, 512})
    for (const int max_rows : {0, 1, 2, 5, 16, 33, 64, 256})
      for (const Policy policy : kPolicies) {
        if (num_experts * max_rows > 40000 && random() % 8) continue;
        const Case c = make_case(policy, max_rows, max_rows, num_experts, random);
        if (random() % unsigned(every)) continue;  // no fixed step, which might leave policies out
        Device device(c);
        compare(c, max_rows, device, selector);
        // Launches again with another number of rows, as the replay of a graph does.
        if (max_rows <= 33) compare(c, int(random() % unsigned(max_rows + 1)), device, selector);
      }
}

// Runs many small cases, some with padding rows, whose scores are like others' or missing.
void test_random_cases(int every) {
  std::mt19937 random(31);
  Selector selector;
  for (int number = 0; number < 8000; ++number) {
    const int max_rows = int(random() % (random() % 8 ? 10 : 41)), num_experts = 1 + int(random() % (random() % 2 ? 24 : 160));
    const int num_rows = random() % 2 ? max_rows : int(random() % unsigned(max_rows + 1));
    Case c = make_case(kPolicies[random() % std::size(kPolicies)], max_rows, num_rows, num_experts, random);
    if (random() % 2) std::fill(c.scores.begin() + num_rows * num_experts, c.scores.end(), std::nanf(""));
    if (random() % unsigned(every)) continue;
    Device device(c);
    compare(c, num_rows, device, selector);
  }
}

// Always runs: the largest k, several steps of a warp's pairs, many ties.
void test_most_choices() {
  std::mt19937 random(32);
  Selector selector;
  for (const Policy policy : kPolicies)
    for (const int kind : {0, 1}) {
      Case c = make_case(policy, 36, 36, 60, random);
      c.top_k = 16;
      c.phase = Phase::kDecodeOnly;
      if (kind == 0) c.exact.clear();
      c.scores = make_scores(kind, c.scores.size(), 60, random);
      if (policy == Policy::kReplay) c.replay = make_replay(c, 36, random);
      Device device(c);
      compare(c, 36, device, selector);
      compare(c, 3, device, selector);
    }
}

// des_vote admits only experts that some row chose, even if gates are zero.
void test_vanishing_gates() {
  Selector selector;
  for (const Policy policy : {Policy::kDesVote, Policy::kXshare}) {
    Case c{4, 10, 2, {}, true, Phase::kDecodeOnly, std::vector<float>(40), {}};
    c.selection.policy = policy;
    c.selection.budget = 2;
    c.selection.k0 = 0;
    for (int t = 0; t < 4; ++t) c.scores[size_t(t * 10 + 9)] = 100, c.scores[size_t(t * 10 + 5 + t % 2)] = 1;
    Device device(c);
    const Output out = compare(c, 4, device, selector);
    CHECK_EQ(out.active[0], policy == Policy::kDesVote ? 5 : 0);
  }
}

// Makes a case with k = 1, in which row t scores 0 for the experts in serves[t] and -100 for the others.
Case cover_case(int num_experts, const std::vector<std::vector<int>>& serves) {
  const int rows = int(serves.size());
  Case c{rows, num_experts, 1, {}, true, Phase::kDecodeOnly, std::vector<float>(size_t(rows * num_experts), -100.0f), {}};
  c.selection = parse_policy("cover:delta=0", 0);
  for (int t = 0; t < rows; ++t)
    for (const int e : serves[size_t(t)]) c.scores[size_t(t * num_experts + e)] = 0;
  return c;
}

// Tests cases whose cover is known.
void test_cover() {
  Selector selector;
  const auto covers = [&](const Case& c, const std::vector<int32_t>& want) {
    Device device(c);
    const Output out = compare(c, c.max_rows, device, selector);
    CHECK(!out.stats.guard_hit);
    CHECK(std::vector(out.active.begin(), out.active.begin() + out.num_active) == want);
  };
  // Expert 5 serves four rows, among them all three of 6; then 7 serves two of those left.
  covers(cover_case(8, {{0, 5, 6}, {1, 5, 6}, {2, 5, 6}, {3, 5}, {0, 7}, {1, 7}, {2}}), {2, 5, 7});
  // After 5, experts 2 and 4 serve the row that is left, and 4 has a gate in a served row, too. The next case has a tie, which the
  // lower expert wins.
  covers(cover_case(6, {{1, 4, 5}, {4, 2}, {1, 3, 5}, {0, 3, 5}}), {4, 5});
  covers(cover_case(6, {{0, 2, 3}, {1, 2, 3}}), {2});
  covers(cover_case(80, {{0, 35, 67}, {1, 35, 67}}), {35});  // which one lane holds
  Case close = cover_case(6, {{2, 3}, {2, 3}, {0}});         // expert 2, which is delta away, serves as many rows as 3
  close.selection.delta = 0.25;
  close.scores[2] = close.scores[6 + 2] = -0.25f;
  close.scores[1] = close.scores[6 + 4] = 0;
  covers(close, {0, 3});
  Case edge = cover_case(5, {{0, 4}, {1, 4}, {2}});  // expert 3 is delta away in float only
  edge.selection.delta = 1;
  for (int t = 0; t < 3; ++t) edge.scores[size_t(t * 5 + t)] = 1, edge.scores[size_t(t * 5 + 3)] = -1e-9f;
  covers(edge, {2, 4});
  // There are several words of rows, and the last is not full.
  for (const int rows : {33, 64, 100, 256}) {
    std::vector<std::vector<int>> serves;
    for (int t = 0; t < rows; ++t) serves.push_back(t == rows - 2 ? std::vector{t % 64, 200} : std::vector{t % 64, 300});
    serves.back() = {1, 200};
    covers(cover_case(400, serves), {200, 300});
  }
}

// Tests refill and damp. Rows that keep their own choice keep its bits.
void test_refill_and_damp(int every) {
  std::mt19937 random(36);
  Selector selector;
  int dropped[kNumPolicies] = {}, lighter[kNumPolicies] = {}, own_rows = 0;
  for (int number = 0; number < 3000; ++number) {
    const Policy policy = kRefilling[number % int(std::size(kRefilling))];
    const int max_rows = 2 + int(random() % 20), num_experts = 4 + int(random() % (random() % 4 ? 60 : 300));
    const int num_rows = random() % 2 ? max_rows : int(random() % unsigned(max_rows + 1));
    Case c = make_case(policy, max_rows, num_rows, num_experts, random);
    c.selection.k0 = std::max(1, c.selection.k0 / 2);
    c.selection.theta = any(random, {1.0, 2.5, 0.3});
    c.selection.refill = any(random, {0.25, 0.05, std::exp(-0.5), 1.0});
    c.selection.damp = any(random, {0.5, 0.0, 0.1, 1.0});
    c.phase = Phase::kDecodeOnly;
    c.scores = make_scores(any(random, {0, 1, 3}), c.scores.size(), num_experts, random);
    if (random() % unsigned(every)) continue;
    Device device(c);
    const Output out = compare(c, num_rows, device, selector);
    Case plain = c;
    plain.selection = {};
    const Output own = device.run(plain, num_rows);
    for (int t = 0; t < num_rows; ++t) {
      const int k = c.top_k;
      const int32_t *ids = &out.ids[size_t(t * k)], *own_ids = &own.ids[size_t(t * k)];
      const float *weights = &out.weights[size_t(t * k)], *own_weights = &own.weights[size_t(t * k)];
      if (std::equal(ids, ids + k, own_ids)) {
        CHECK(std::memcmp(weights, own_weights, size_t(k) * 4) == 0);
        ++own_rows;
        continue;
      }
      dropped[int(policy)] += std::count(ids, ids + k, -1) > 0;
      lighter[int(policy)] +=
          std::accumulate(weights, weights + k, 0.0) < std::accumulate(own_weights, own_weights + k, 0.0) - 1e-3;
    }
  }
  if (every > 1) return;
  CHECK(own_rows > 1000);
  for (const Policy policy : kRefilling) {
    CHECK(dropped[int(policy)] > 200);
    CHECK(lighter[int(policy)] > 200);
  }
}

// Under a policy that treats rows one by one, a row has the bits that it has alone.
void test_rows_alone() {
  std::mt19937 random(33);
  for (const Policy policy : kPolicies) {
    if (!is_per_row({.policy = policy})) continue;
    Case c = make_case(policy, 9, 9, 70, random);
    c.phase = Phase::kDecodeOnly;
    c.exact.clear();
    Device device(c);
    const Output together = device.run(c, 9);
    CHECK(together.stats.acted);
    for (int t = 0; t < 9; ++t) {
      Case one = c;
      one.max_rows = 1;
      one.scores.assign(c.scores.begin() + t * 70, c.scores.begin() + (t + 1) * 70);
      if (policy == Policy::kReplay) one.replay.assign(c.replay.begin() + t * c.top_k, c.replay.begin() + (t + 1) * c.top_k);
      Device small(one);
      const Output alone = small.run(one, 1);
      CHECK(alone.stats.acted);
      CHECK(std::memcmp(alone.ids.data(), &together.ids[size_t(t * c.top_k)], size_t(c.top_k) * 4) == 0);
      CHECK(std::memcmp(alone.weights.data(), &together.weights[size_t(t * c.top_k)], size_t(c.top_k) * 4) == 0);
    }
  }
}

// Each isolation group has the bits that its rows have alone, and the whole step equals the CPU's.
void test_groups(int every) {
  std::mt19937 random(37);
  Selector selector;
  std::vector<Policy> policies(std::begin(kPolicies), std::end(kPolicies));
  policies.insert(policies.end(), {Policy::kLynx, Policy::kOea});
  int kept = 0, fell_back = 0;
  for (int number = 0; number < 4000; ++number) {
    const int max_rows = 1 + int(random() % (random() % 16 ? 24 : 80)),
              num_experts = 1 + int(random() % (random() % 2 ? 24 : 160));
    const int num_rows = random() % 2 ? max_rows : int(random() % unsigned(max_rows + 1));
    Case c = make_case(policies[size_t(number) % policies.size()], max_rows, num_rows, num_experts, random);
    if (c.selection.policy == Policy::kOea) c.selection.k0 = std::max(1, c.selection.k0);
    draw_groups(c, num_rows, random);
    if (random() % unsigned(every)) continue;
    Device device(c);
    const Output together = compare(c, num_rows, device, selector);
    if (has_guard(c.selection)) ++(together.stats.guard_hit ? fell_back : kept);
    const int32_t group = num_rows ? c.groups[0] : 0;
    Case one = c;
    one.groups.clear();
    one.scores.clear(), one.exact.clear(), one.replay.clear();
    std::vector<int> rows;
    for (int t = 0; t < num_rows; ++t) {
      if (c.groups[size_t(t)] != group) continue;
      rows.push_back(t);
      one.scores.insert(one.scores.end(), c.scores.begin() + t * num_experts, c.scores.begin() + (t + 1) * num_experts);
      if (!c.exact.empty()) one.exact.push_back(c.exact[size_t(t)]);
      if (!c.replay.empty())
        one.replay.insert(one.replay.end(), &c.replay[size_t(t * c.top_k)], &c.replay[size_t(t * c.top_k)] + c.top_k);
    }
    one.max_rows = int(rows.size());
    Device small(one);
    const Output alone = small.run(one, one.max_rows);
    for (size_t i = 0; i < rows.size(); ++i) {
      const size_t at = i * size_t(c.top_k), from = size_t(rows[i] * c.top_k);
      CHECK(std::memcmp(&alone.ids[at], &together.ids[from], size_t(c.top_k) * 4) == 0);
      CHECK(std::memcmp(&alone.weights[at], &together.weights[from], size_t(c.top_k) * 4) == 0);
    }
  }
  if (every == 1) CHECK(kept > 400 && fell_back > 200);
}

// Costs of experts, and policies with `resident`; steps of more rows than a policy may act on count their misses too.
void test_resident(int every) {
  std::mt19937 random(41);
  Selector selector;
  constexpr Policy kKnow[] = {Policy::kTopk, Policy::kLynx, Policy::kOea, Policy::kXshare, Policy::kDesVote, Policy::kCover};
  int kept = 0, fell_back = 0, missed = 0, single = 0;
  for (int number = 0; number < 4000; ++number) {
    const int max_rows = 1 + int(random() % (random() % 16 ? 24 : 80)),
              num_experts = 1 + int(random() % (random() % 2 ? 24 : 160));
    const int num_rows = random() % 2 ? max_rows : int(random() % unsigned(max_rows + 1));
    Case c = make_case(kKnow[size_t(number) % std::size(kKnow)], max_rows, num_rows, num_experts, random);
    if (c.selection.policy == Policy::kOea) c.selection.k0 = std::max(1, c.selection.k0);
    c.selection.resident = any(random, {0.0, 0.125, 0.3, 1.0, 1.0, 2.5, 1000.0});
    const unsigned of = 1 + random() % 5;
    for (int e = 0; e < num_experts; ++e) c.cost.push_back(random() % 4 < of - 1);
    if (random() % 3 == 0) draw_groups(c, num_rows, random);
    if (random() % unsigned(every)) continue;
    Device device(c);
    const Output out = compare(c, num_rows, device, selector);
    if (c.selection.resident > 0 && out.stats.acted) ++(out.stats.guard_hit ? fell_back : kept);
    missed += out.stats.misses > 0;
    single += num_rows == 1 && out.stats.misses < out.stats.misses_before;
  }
  if (every == 1) CHECK(kept > 400 && fell_back > 400 && missed > 1000 && single > 20);

  Case large = make_case(Policy::kTopk, 300, 290, 40, random);
  for (int e = 0; e < 40; ++e) large.cost.push_back(e % 3 == 0);
  Device device(large);
  CHECK(compare(large, 290, device, selector).stats.misses > 0);
}

// A non-finite score is reported, and the lists stay in range under every policy.
void test_bad_scores() {
  std::mt19937 random(34);
  std::vector<Policy> policies(std::begin(kPolicies), std::end(kPolicies));
  policies.insert(policies.end(), {Policy::kLynx, Policy::kOea});
  for (const Policy policy : policies)
    for (const float bad : {std::nanf(""), -std::nanf(""), std::numeric_limits<float>::infinity()}) {
      Case c = make_case(policy, 7, 7, 40, random);
      c.selection.k0 = 1;
      c.phase = Phase::kDecodeOnly;
      c.scores = make_scores(0, c.scores.size(), 40, random);
      std::fill(c.scores.begin() + 4 * 40, c.scores.end(), bad);
      c.scores[3 * 40 + 7] = bad;
      Device device(c);
      const Output out = device.run(c, 7);
      CHECK_EQ(out.first_bad, 3 * 40 + 7);
      for (const int32_t id : out.ids) CHECK(id >= -1 && id < 40);
      for (const int32_t row : out.sorted_of_pair) CHECK(row >= -1 && row < 7 * c.top_k);
    }
}

void test_arguments() {
  std::mt19937 random(35);
  for (const Policy policy : kPolicies) {
    Case c = make_case(policy, 300, 300, 8, random);
    c.selection.k0 = c.selection.rank = 0;
    c.phase = Phase::kPrefill;
    c.selection.all_phases = true;
    Device device(c);
    CHECK_THROWS(device.run(c, 300), ErrorCode::kInvalidArgument, "route", {"rows", "policy", "0..256", "300"});
    c.selection.all_phases = false;  // large steps are allowed where the policy does not act
    Case own = c;
    own.selection = {};
    const Output got = device.run(c, 300), want = device.run(own, 300);
    CHECK(got.ids == want.ids && got.weights == want.weights);
    CHECK(!got.stats.acted);
  }
  Case c = make_case(Policy::kTopJ, 4, 4, 8, random);
  c.selection.j = c.top_k + 1;
  Device device(c);
  CHECK_THROWS(device.run(c, 4), ErrorCode::kInvalidArgument, "selection", {"j: expected 1.."});
}

}  // namespace

int main(int argc, char** argv) {
  const int every = argc > 1 ? std::atoi(argv[1]) : 1;
  test_cases(every);
  test_random_cases(every);
  test_most_choices();
  test_vanishing_gates();
  test_cover();
  test_refill_and_damp(every);
  test_rows_alone();
  test_groups(every);
  test_resident(every);
  test_bad_scores();
  test_arguments();
  if (every == 1)
    for (const Policy policy : kPolicies) {
      CHECK(coverage[int(policy)].acted > 300);
      CHECK(coverage[int(policy)].changed > 150);
      CHECK(!has_guard({.policy = policy}) || coverage[int(policy)].guard_hits > 20);
    }
  return check::result("test_route_policies");
}
