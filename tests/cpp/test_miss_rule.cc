// Tests the rule that says which absent experts a step reads, which it computes in low precision, and which it does without.
#include "routing/miss_rule.h"

#include <algorithm>
#include <random>
#include <set>
#include <vector>

#include "check.h"

using namespace lynx_rt;

namespace {

struct Case {
  std::vector<int32_t> ids, active;
  std::vector<float> weights;
  std::vector<uint8_t> cost;
  int64_t rows, k;
  std::vector<int32_t> needed{};

  bool apply(double full, double skip) {
    active.resize(cost.size());
    Routing routing{ids.data(), weights.data(), active.data(), 0};
    const bool dropped = apply_miss_rule(full, skip, cost.data(), int64_t(cost.size()), rows, k, routing, needed);
    active.resize(size_t(routing.num_active));
    return dropped;
  }
};

// HOBBIT's example: unimportance 0, 0.5, 0.75, 0.95 of the four choices.
void test_one_row() {
  const Case c{{3, 0, 2, 1}, {}, {0.5f, 0.25f, 0.2f, 0.05f}, {1, 1, 1, 1}, 1, 4};
  Case a = c;
  CHECK(a.apply(0.6, 0.9));
  CHECK(a.ids == (std::vector<int32_t>{3, 0, 2, -1}));
  CHECK(a.weights == (std::vector<float>{0.5f, 0.25f, 0.2f, 0}));  // the others keep theirs
  CHECK(a.active == (std::vector<int32_t>{0, 2, 3}));
  CHECK(a.needed == (std::vector<int32_t>{0, 3}));
  Case resident = c;
  resident.cost = {1, 0, 1, 1};  // what is there is neither read nor dropped
  CHECK(!resident.apply(0.6, 0.9));
  CHECK(resident.ids == c.ids && resident.weights == c.weights);
  CHECK(resident.needed == (std::vector<int32_t>{0, 3}));
  Case none = c;
  CHECK(!none.apply(-1, 1));  // copies alone
  CHECK(none.needed.empty() && none.ids == c.ids);
  Case all = c;
  CHECK(!all.apply(1, 1));
  CHECK(all.needed == (std::vector<int32_t>{0, 1, 2, 3}));
  Case first = c;
  CHECK(first.apply(-1, 0));  // a row is never left without its first choice
  CHECK(first.ids == (std::vector<int32_t>{3, -1, -1, -1}));
}

// An expert that one row needs in full is there for the others, which then do not drop it.
void test_rows_share() {
  Case c{{0, 1, 1, 0}, {}, {0.9f, 0.1f, 0.8f, 0.2f}, {1, 1}, 2, 2};
  CHECK(!c.apply(0, 0.5));
  CHECK(c.needed == (std::vector<int32_t>{0, 1}));
  Case other{{0, 1, 0, 1}, {}, {0.9f, 0.1f, 0.4f, 0.6f}, {1, 1}, 2, 2};
  CHECK(other.apply(0, 0.5));
  CHECK(other.ids == (std::vector<int32_t>{0, -1, 0, 1}));
  CHECK(other.active == (std::vector<int32_t>{0, 1}) && other.needed == (std::vector<int32_t>{0}));
}

void test_random() {
  std::mt19937 random(5);
  for (int i = 0; i < 2000; ++i) {
    const int64_t rows = random() % 6, k = 1 + int64_t(random() % 5), experts = k + int64_t(random() % 9);
    Case c{{}, {}, {}, {}, rows, k};
    for (int64_t e = 0; e < experts; ++e) c.cost.push_back(uint8_t(random() % 2));
    for (int64_t t = 0; t < rows; ++t) {
      std::vector<int32_t> order;
      for (int32_t e = 0; e < int32_t(experts); ++e) order.push_back(e);
      std::shuffle(order.begin(), order.end(), random);
      for (int64_t j = 0; j < k; ++j) {
        const bool none = random() % 7 == 0;  // selection has dropped it
        c.ids.push_back(none ? -1 : order[size_t(j)]);
        c.weights.push_back(none ? 0 : float(1 + random() % 100) / 64);
      }
    }
    const double full = double(random() % 12) / 10 - 0.1, skip = double(random() % 11) / 10;
    // The plain form: each choice looked at by itself.
    std::set<int32_t> needed, active;
    std::vector<double> unimportance;
    for (int64_t p = 0; p < rows * k; ++p) {
      double all = 0, before = 0;
      for (int64_t j = p / k * k; j < (p / k + 1) * k; ++j) {
        all += double(c.weights[size_t(j)]);
        if (j < p) before += double(c.weights[size_t(j)]);
      }
      unimportance.push_back(all > 0 ? before / all : 0);
      const int32_t e = c.ids[size_t(p)];
      if (e >= 0 && c.cost[size_t(e)] && unimportance.back() <= full) needed.insert(e);
    }
    Case want = c;
    for (size_t p = 0; p < c.ids.size(); ++p) {
      const int32_t e = c.ids[p];
      if (e < 0) continue;
      if (c.cost[size_t(e)] && !needed.count(e) && unimportance[p] > 0 && unimportance[p] > skip)
        want.ids[p] = -1, want.weights[p] = 0;
      else
        active.insert(e);
    }
    const std::vector<int32_t> before = c.ids;
    CHECK_EQ(c.apply(full, skip), before != want.ids);
    CHECK(c.ids == want.ids && c.weights == want.weights);
    CHECK(std::equal(active.begin(), active.end(), c.active.begin(), c.active.end()));
    CHECK(std::equal(needed.begin(), needed.end(), c.needed.begin(), c.needed.end()));
  }
}

}  // namespace

int main() {
  test_one_row();
  test_rows_share();
  test_random();
  return check::result("test_miss_rule");
}
