#include "routing/miss_rule.h"

#include <cstddef>

namespace lynx_rt {

namespace {

// Calls visit(pair, unimportance) for the choices of each row that have an expert.
template <class Visit>
void visit_choices(const Routing& routing, int64_t num_rows, int64_t top_k, Visit visit) {
  for (int64_t begin = 0; begin < num_rows * top_k; begin += top_k) {
    double all = 0, before = 0;
    for (int64_t p = begin; p < begin + top_k; ++p) all += double(routing.weights[p]);
    for (int64_t p = begin; p < begin + top_k; ++p) {
      if (routing.ids[p] >= 0) visit(p, all > 0 ? before / all : 0);
      before += double(routing.weights[p]);
    }
  }
}

}  // namespace

bool apply_miss_rule(double full, double skip, const uint8_t* cost, int64_t num_experts, int64_t num_rows, int64_t top_k,
                     Routing& routing, std::vector<int32_t>& needed) {
  std::vector<uint8_t> is_needed(size_t(num_experts), 0), is_active(size_t(num_experts), 0);
  visit_choices(routing, num_rows, top_k, [&](int64_t p, double unimportance) {
    const size_t e = size_t(routing.ids[p]);
    if (cost[e] != 0 && unimportance <= full) is_needed[e] = 1;
  });
  std::vector<int64_t> dropped;
  visit_choices(routing, num_rows, top_k, [&](int64_t p, double unimportance) {
    const size_t e = size_t(routing.ids[p]);
    if (cost[e] != 0 && !is_needed[e] && unimportance > 0 && unimportance > skip)
      dropped.push_back(p);
    else
      is_active[e] = 1;
  });
  for (const int64_t p : dropped) routing.ids[p] = -1, routing.weights[p] = 0;
  routing.num_active = 0;
  needed.clear();
  for (int32_t e = 0; e < int32_t(num_experts); ++e) {
    if (is_active[size_t(e)]) routing.active[routing.num_active++] = e;
    if (is_needed[size_t(e)]) needed.push_back(e);
  }
  return !dropped.empty();
}

}  // namespace lynx_rt
