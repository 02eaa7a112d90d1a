// Compares route() with the CPU's Selector for every kind of router: own routing and all policies.
//   test_route_rules [n]   every n-th case; the options are those of SIMT_COPY and SIMT_SEED
#include <cstdlib>
#include <cstring>
#include <limits>

#include "route_policy_case.h"
#include "routing/router_keys.h"

using namespace lynx_rt;
using namespace route_case;

namespace {

// Sets the rule of `c` to a random one that its sizes allow.
void draw_rule(Case& c, std::mt19937& random) {
  RouterRule& r = c.router;
  r.kind = any(random, {RouterKind::kSoftmax, RouterKind::kSigmoid, RouterKind::kSigmoid, RouterKind::kSparsemixer});
  r.scale = any(random, {1.0f, 2.5f, 16.0f});
  r.min_sum = any(random, {0.0f, 0.0f, 1e-20f, 0.3f});
  r.jitter = any(random, {0.01f, 0.2f, 0.0f, 3.0f});
  if (r.kind == RouterKind::kSparsemixer && c.top_k != 2) r.kind = RouterKind::kSoftmax;
  if (r.kind == RouterKind::kSparsemixer) return;
  if (random() % 2) {
    std::vector<int> divisors;
    for (int n = 1; n <= c.num_experts; ++n)
      if (c.num_experts % n == 0) divisors.push_back(n);
    r.num_groups = divisors[random() % divisors.size()];
    const int size = c.num_experts / r.num_groups, least = (c.top_k + size - 1) / size;
    r.top_groups = least + int(random() % unsigned(r.num_groups - least + 1));
    r.group_top2 = size > 1 && random() % 2;
  }
  if (random() % 3 == 0) return;
  std::normal_distribution<float> normal(0, any(random, {0.0f, 0.01f, 0.3f, 3.0f, 1e30f}));
  const float offset = any(random, {0.0f, 0.0f, 7.0f, -100.0f});
  for (int e = 0; e < c.num_experts; ++e) c.bias.push_back(offset + normal(random));
}

int with_keys = 0, dropped = 0;

void test_random_cases(int every) {
  std::mt19937 random(40);
  Selector selector;
  for (int number = 0; number < 12000; ++number) {
    const int max_rows = int(random() % (random() % 8 ? 10 : 41)), num_experts = 1 + int(random() % (random() % 2 ? 24 : 160));
    const int num_rows = random() % 2 ? max_rows : int(random() % unsigned(max_rows + 1));
    const Policy policies[] = {Policy::kTopk, Policy::kLynx, Policy::kOea, kPolicies[random() % std::size(kPolicies)]};
    Case c = make_case(policies[random() % 4], max_rows, num_rows, num_experts, random);
    draw_rule(c, random);
    std::fill(c.scores.begin() + num_rows * num_experts, c.scores.end(), std::nanf(""));
    if (c.selection.policy == Policy::kOea) c.selection.k0 = std::max(c.selection.k0, 1);
    if (random() % unsigned(every)) continue;
    Device device(c);
    const Output out = compare(c, num_rows, device, selector);
    with_keys += has_keys(c.rule(c.bias.data()));
    const auto end = out.ids.begin() + num_rows * c.top_k;
    dropped += admits(c.selection.policy) && c.selection.refill == 0 && std::find(out.ids.begin(), end, -1) != end;
    if (num_rows > 1) compare(c, num_rows / 2, device, selector);  // as the replay of a graph does
  }
}

void test_large(int every) {
  std::mt19937 random(41);
  Selector selector;
  for (const int num_experts : {64, 256, 512})
    for (const int max_rows : {256, 300, 700})
      for (int number = 0; number < 8; ++number) {
        Case c = make_case(kPolicies[random() % std::size(kPolicies)], max_rows, max_rows, num_experts, random);
        if (max_rows > cuda::kMaxRouteRows) c.phase = Phase::kPrefill, c.selection.all_phases = false;
        draw_rule(c, random);
        if (random() % unsigned(every)) continue;
        Device device(c);
        const std::vector<float> got = compare(c, max_rows, device, selector).weights;
        if (max_rows <= cuda::kMaxRouteRows) continue;
        // A row's weights have the same bits in a small step.
        Case few = c;
        few.max_rows = 5;
        few.scores.resize(size_t(5 * num_experts));
        few.exact.resize(c.exact.empty() ? 0 : 5);
        Device small(few);
        const std::vector<float> want = small.run(few, 5).weights;
        CHECK(std::memcmp(got.data(), want.data(), want.size() * sizeof(float)) == 0);
      }
}

// A non-finite score is reported under every rule, even -inf, which is a valid key; the lists stay in range.
void test_bad_scores() {
  std::mt19937 random(42);
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()})
    for (const int max_rows : {5, 270})
      for (int number = 0; number < 6; ++number) {
        Case c = make_case(Policy::kXshare, max_rows, max_rows, 40, random);
        c.phase = Phase::kMixed;
        c.selection.all_phases = false;
        c.exact.clear();
        c.scores = make_scores(0, c.scores.size(), 40, random);
        draw_rule(c, random);
        const int first = max_rows / 2;
        c.scores[size_t(first * 40 + 7)] = bad;
        std::fill(c.scores.begin() + (first + 1) * 40, c.scores.end(), bad);
        Device device(c);
        const Output out = device.run(c, max_rows);
        CHECK_EQ(out.first_bad, first * 40 + 7);
        for (const int32_t id : out.ids) CHECK(id >= 0 && id < 40);
        CHECK_EQ(device.run(c, first).first_bad, -1);
      }
}

void test_arguments() {
  std::mt19937 random(43);
  Case good = make_case(Policy::kTopJ, 4, 4, 12, random);
  good.top_k = 2;
  good.selection = {};
  const auto call = [&](auto change) {
    Case c = good;
    change(c.router);
    Device(c).run(c, 0);
  };
  const auto invalid = ErrorCode::kInvalidArgument;
  CHECK_THROWS(call([](RouterRule& r) { r.num_groups = 5; }), invalid, "router", {"num_groups", "12", "got 5"});
  CHECK_THROWS(call([](RouterRule& r) { r.num_groups = 12; }), invalid, "router", {"top_groups", "at least 2", "got 1"});
  CHECK_THROWS(call([](RouterRule& r) { r.scale = std::nanf(""); }), invalid, "router", {"scale", "finite", "nan"});
}

}  // namespace

int main(int argc, char** argv) {
  const int every = argc > 1 ? std::atoi(argv[1]) : 1;
  test_random_cases(every);
  test_large(every);
  test_bad_scores();
  test_arguments();
  if (every == 1) {
    CHECK(with_keys > 6000);
    CHECK(dropped > 50);
    for (const Policy policy : kPolicies) CHECK(coverage[int(policy)].changed > 50);
  }
  return check::result("test_route_rules");
}
