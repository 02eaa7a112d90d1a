// What the parts of Selector share.
#pragma once
#include <algorithm>
#include <span>

#include "backend/cpu/select.h"

namespace lynx_rt {

struct Selector::Batch {
  const float* scores;  // [T, E]
  int64_t num_rows;     // T
  int num_experts;      // E
  int top_k;            // k
  bool norm_topk;
  const uint8_t* exact;  // [T] or null
  const Selection& selection;

  const float* row(int64_t t) const { return scores + t * num_experts; }
  int64_t num_pairs() const { return num_rows * top_k; }
  bool is_exact(int64_t t) const { return exact && exact[t]; }
};

// Whether the weights of own choices move with them.
constexpr bool moves_weights(Policy p) { return p == Policy::kSere || p == Policy::kAlias; }

// The k best of `candidates` (ascending expert ids) by score, best first, ties to the lower expert. Returns how many there
// are: min(k, candidates). An insertion sort of the best k; most candidates fail the first comparison.
inline int pick_best(const float* scores, std::span<const int32_t> candidates, int k, int32_t* ids) {
  int n = 0;
  for (const int32_t e : candidates) {
    if (n == k && scores[e] <= scores[ids[k - 1]]) continue;
    int slot = n < k ? n++ : k - 1;
    for (; slot > 0 && scores[e] > scores[ids[slot - 1]]; --slot) ids[slot] = ids[slot - 1];
    ids[slot] = e;
  }
  return n;
}

// Drops what a row did not choose itself and whose score is more than `limit` nats (-log(refill)) below the best that it got.
inline void drop_refills(const float* scores, const int32_t* wanted, int k, double limit, int32_t* ids) {
  float best = scores[ids[0]];
  for (int j = 1; j < k; ++j) best = std::max(best, scores[ids[j]]);
  for (int j = 0; j < k; ++j)
    if (double(best) - scores[ids[j]] > limit && std::find(wanted, wanted + k, ids[j]) == wanted + k) ids[j] = -1;
}

}  // namespace lynx_rt
