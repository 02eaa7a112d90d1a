// Definitions that the source files of Selector share.
#pragma once
#include <algorithm>
#include <cmath>
#include <span>

#include "routing/selector.h"

namespace lynx_rt {

struct Selector::Batch {
  const float* keys;     // [T, E] by which experts are chosen and compared; router_keys.h
  const float* gates;    // [T, E] from which weights are computed
  int64_t num_rows;      // T
  int num_experts;       // E
  int top_k;             // k
  const uint8_t* exact;  // [T] or null
  const uint8_t* cost;   // [E] or null
  const RouterRule& rule;
  const Selection& selection;

  const float* keys_of(int64_t t) const { return keys + t * num_experts; }
  const float* gates_of(int64_t t) const { return gates + t * num_experts; }
  int64_t num_pairs() const { return num_rows * top_k; }
  bool is_exact(int64_t t) const { return exact && exact[t]; }
};

// Makes scratch memory as large as a call needs; it never shrinks.
template <class T>
void grow(std::vector<T>& v, int64_t size) {
  if (int64_t(v.size()) < size) v.resize(size_t(size));
}

// Whether an own choice that moves to another expert takes its weight along.
constexpr bool moves_weights(Policy p) { return p == Policy::kSere || p == Policy::kAlias; }

// Writes the k best of `candidates` (ascending expert ids) by key to `ids`, best first, ties to the lower expert. Returns their
// number: min(k, candidates). It is an insertion sort of the best k, since most candidates fail the first comparison.
inline int pick_best(const float* keys, std::span<const int32_t> candidates, int k, int32_t* ids) {
  int n = 0;
  for (const int32_t e : candidates) {
    if (n == k && keys[e] <= keys[ids[k - 1]]) continue;
    int rank = n < k ? n++ : k - 1;
    for (; rank > 0 && keys[e] > keys[ids[rank - 1]]; --rank) ids[rank] = ids[rank - 1];
    ids[rank] = e;
  }
  return n;
}

// Drops experts outside the row's groups. A row that would be left with none takes `first`, its own first choice.
inline void drop_outside(const float* keys, int32_t first, int k, int32_t* ids) {
  for (int j = 0; j < k; ++j)
    if (keys[ids[j]] == -INFINITY) ids[j] = -1;
  if (ids[0] < 0) ids[0] = first;
}

// Drops the experts that a row did not choose itself and whose key is more than `limit` nats (-log(refill)) below its best one.
// ids[0] must be an expert.
inline void drop_refills(const float* keys, const int32_t* wanted, int k, double limit, int32_t* ids) {
  float best = keys[ids[0]];
  for (int j = 1; j < k; ++j)
    if (ids[j] >= 0) best = std::max(best, keys[ids[j]]);
  for (int j = 0; j < k; ++j)
    if (ids[j] >= 0 && double(best) - keys[ids[j]] > limit && std::find(wanted, wanted + k, ids[j]) == wanted + k) ids[j] = -1;
}

}  // namespace lynx_rt
