// Random cases of the policies that test_route.cc does not test.
#pragma once
#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "route_case.h"

namespace route_case {

inline constexpr Policy kPolicies[] = {Policy::kXshare,   Policy::kDesVote, Policy::kCover, Policy::kLynxLiteral,
                                       Policy::kSere,     Policy::kSkip,    Policy::kTopJ,  Policy::kDenyRank,
                                       Policy::kCapacity, Policy::kAlias,   Policy::kReplay};
template <class T>
T any(std::mt19937& random, std::initializer_list<T> values) {
  return values.begin()[random() % values.size()];
}

inline Selection make_selection(Policy policy, int num_experts, int k, std::mt19937& random) {
  Selection s;
  s.policy = policy;
  s.alpha = any(random, {8.0, 1.0, 1.1, 0.25, 1e-35});
  s.beta = 1 + int(random() % 16);
  s.lambda = any(random, {1.0, 0.0, 0.25, 8.0, 1e39});
  s.k0 = int(random() % unsigned(k + 1));
  s.budget = any(random, {0.5, 0.1, 0.9, 1.0, 1.0 + random() % unsigned(num_experts)});
  s.primary = 1 + int(random() % unsigned(k));
  s.rho = any(random, {0.0, 0.3, 0.75, 1.5});
  s.ratio = any(random, {0.5, 0.0, 0.1, std::exp(-0.25), 1.0});
  s.j = 1 + int(random() % unsigned(k));
  s.rank = int(random() % unsigned(k));
  s.factor = any(random, {1.0, 0.1, 0.5, 1.25, 3.0, 1e300});
  s.delta = any(random, {0.05, 0.0, 0.25, 0.3, 1.0, 1e300});
  // The other policies ignore these.
  s.refill = any(random, {0.0, 0.0, 0.1, 0.5, std::exp(-0.25), 1.0});
  s.damp = any(random, {0.0, 0.0, 0.01, 0.5, 1.0});
  s.all_phases = random() % 3 == 0;
  return s;
}

// Returns recorded ids; those of padding rows are poison.
inline std::vector<int32_t> make_replay(const Case& c, int num_rows, std::mt19937& random) {
  std::vector<int32_t> experts(size_t(c.num_experts)), ids(size_t(c.max_rows) * size_t(c.top_k), 30000);
  std::iota(experts.begin(), experts.end(), 0);
  for (int t = 0; t < num_rows; ++t) {
    std::shuffle(experts.begin(), experts.end(), random);
    const unsigned keep = random() % 4;  // 0: a row without experts
    for (int j = 0; j < c.top_k; ++j) ids[size_t(t * c.top_k + j)] = random() % 4 < keep ? experts[size_t(j)] : -1;
  }
  return ids;
}

inline Case make_case(Policy policy, int max_rows, int num_rows, int num_experts, std::mt19937& random) {
  Case c{max_rows, num_experts, 1 + int(random() % unsigned(std::min(8, num_experts))), {}, true, Phase::kDecodeOnly, {}, {}};
  c.selection = make_selection(policy, num_experts, c.top_k, random);
  c.norm_topk = random() % 2;
  if (random() % 6 == 0) c.phase = any(random, {Phase::kPrefill, Phase::kMixed});
  if (random() % 3 == 0) {
    c.exact.resize(size_t(max_rows));
    const unsigned every = 1 + random() % 4;
    for (uint8_t& flag : c.exact) flag = random() % every == 0;
  }
  c.scores = make_scores(any(random, {0, 0, 0, 1, 1, 2, 3, 4}), size_t(max_rows) * size_t(num_experts), num_experts, random);
  if (policy == Policy::kSere)
    for (int i = 0; i < num_experts * num_experts; ++i) c.similarity.push_back(float(int(random() % 9) - 4) / 4);
  if (policy == Policy::kAlias)
    for (int e = 0; e < num_experts; ++e) c.alias.push_back(int32_t(random() % unsigned(1 + num_experts / 3)));
  if (policy == Policy::kReplay) c.replay = make_replay(c, num_rows, random);
  return c;
}

}  // namespace route_case
