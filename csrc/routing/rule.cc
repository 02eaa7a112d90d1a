#include "routing/rule.h"

#include <cmath>

#include "base/error.h"

namespace lynx_rt {

RouterKind parse_router_kind(const std::string& name) {
  const RouterKind kinds[] = {RouterKind::kSoftmax, RouterKind::kSigmoid, RouterKind::kSparsemixer};
  for (const RouterKind kind : kinds)
    if (name == to_string(kind)) return kind;
  invalid("router", "kind: expected ", joined(kinds, [](RouterKind kind) { return to_string(kind); }), ", got \"", name, "\"");
}

std::string to_string(RouterKind kind) {
  return kind == RouterKind::kSoftmax ? "softmax" : kind == RouterKind::kSigmoid ? "sigmoid" : "sparsemixer";
}

void check_rule(const RouterRule& r) {
  const auto check = [](const char* member, auto value, bool ok, const auto&... expected) {
    if (!ok) invalid("router", member, ": expected ", expected..., ", got ", value);
  };
  const auto check_factor = [](const char* member, double value) {
    if (!std::isfinite(value) || value < 0) invalid("router", member, ": expected a finite number >= 0, got ", shortest(value));
  };
  check("num_experts", r.num_experts, r.num_experts >= 1, "at least 1");
  check("top_k", r.top_k, r.top_k >= 1 && r.top_k <= r.num_experts, "1..", r.num_experts, " (experts)");
  check("num_groups", r.num_groups, r.num_groups >= 1 && r.num_experts % r.num_groups == 0, "a divisor of ", r.num_experts,
        " (experts)");
  const int group_size = r.num_experts / r.num_groups;
  check("top_groups", r.top_groups, r.top_groups >= 1 && r.top_groups <= r.num_groups, "1..", r.num_groups, " (num_groups)");
  check("top_groups", r.top_groups, int64_t{r.top_groups} * group_size >= r.top_k, "at least ", r.top_k, " experts in groups of ",
        group_size);
  check("num_groups", r.num_groups, r.num_groups == 1 || !r.group_top2 || group_size >= 2,
        "groups of two experts at least, whose two best are summed");
  check_factor("scale", r.scale);
  check_factor("min_sum", r.min_sum);
  check_factor("jitter", r.jitter);
  if (r.kind != RouterKind::kSparsemixer) return;
  check("top_k", r.top_k, r.top_k == 2, "2 with sparsemixer");
  check("num_groups", r.num_groups, r.num_groups == 1, "1 with sparsemixer");
  check("bias", "one", !r.bias, "none with sparsemixer");
}

}  // namespace lynx_rt
