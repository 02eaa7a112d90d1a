// Binds expert selection and dispatch on NumPy arrays, for tests and benches.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "bindings.h"
#include "routing/dispatch.h"
#include "routing/selection_text.h"
#include "routing/selector.h"

namespace py = pybind11;

namespace lynx_rt {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

Phase parse_phase(const std::string& name) {
  if (name == "prefill") return Phase::kPrefill;
  if (name == "mixed") return Phase::kMixed;
  if (name == "decode_only") return Phase::kDecodeOnly;
  invalid("phase", "expected \"prefill\", \"mixed\" or \"decode_only\", got \"", name, "\"");
}

py::dict stats_dict(const SelectionStats& stats) {
  py::dict d;
  d["rows"] = stats.rows;
  d["union_before"] = stats.union_before;
  d["active"] = stats.active;
  d["remapped_pairs"] = stats.remapped_pairs;
  d["changed_rows"] = stats.changed_rows;
  d["misses_before"] = stats.misses_before;
  d["misses"] = stats.misses;
  d["retained_mass"] = stats.retained_mass;
  d["acted"] = stats.acted;
  d["guard_hit"] = stats.guard_hit;
  return d;
}

// Returns the data of a table for one layer, which must have that shape; null where it is not given.
template <class T>
const T* table(const std::optional<Array<T>>& given, const char* name, const std::vector<int64_t>& shape) {
  if (!given) return nullptr;
  const std::vector<int64_t> found(given->shape(), given->shape() + given->ndim());
  if (found != shape) invalid(name, "expected ", shape, ", got ", found);
  return given->data();
}

void check_ids(const char* name, const int32_t* ids, int64_t count, int least, int num_experts) {
  for (int64_t i = 0; ids && i < count; ++i)
    if (ids[i] < least || ids[i] >= num_experts)
      invalid(name, "entry ", i, ": expected ", least, "..", num_experts - 1, ", got ", ids[i]);
}

struct SelectArgs {
  Array<float> scores;
  int top_k;
  bool norm_topk;
  std::string selection, phase;
  std::optional<Array<uint8_t>> exact;
  std::optional<Array<float>> similarity;
  std::optional<Array<int32_t>> alias, replay, groups;
  std::optional<Array<uint8_t>> cost;
  py::kwargs rule;  // the other members of RouterRule, by name
};

// Returns the router rule of a call; `bias` keeps its bias alive.
RouterRule rule_of(const SelectArgs& a, int num_experts, std::optional<Array<float>>& bias) {
  RouterRule rule{.num_experts = num_experts, .top_k = a.top_k, .norm_topk = a.norm_topk};
  for (const auto& [key, value] : a.rule) {
    const std::string name = key.cast<std::string>();
    if (name == "kind")
      rule.kind = parse_router_kind(value.cast<std::string>());
    else if (name == "bias")
      bias = value.cast<std::optional<Array<float>>>();
    else if (name == "num_groups")
      rule.num_groups = value.cast<int>();
    else if (name == "top_groups")
      rule.top_groups = value.cast<int>();
    else if (name == "group_top2")
      rule.group_top2 = value.cast<bool>();
    else if (name == "scale")
      rule.scale = value.cast<float>();
    else if (name == "min_sum")
      rule.min_sum = value.cast<float>();
    else if (name == "jitter")
      rule.jitter = value.cast<float>();
    else
      invalid("router", "expected kind, bias, num_groups, top_groups, group_top2, scale, min_sum or jitter, got \"", name, "\"");
  }
  rule.bias = table(bias, "bias", {num_experts});
  check_rule(rule);
  for (int e = 0; rule.bias && e < num_experts; ++e)
    if (!std::isfinite(rule.bias[e])) invalid("bias", "expert ", e, ": expected a finite value, got ", double(rule.bias[e]));
  return rule;
}

py::dict select(Selector& selector, const SelectArgs& a) {
  if (a.scores.ndim() != 2 || a.scores.shape(1) < 1) invalid("scores", "expected [T, E] with E >= 1");
  const int64_t num_rows = a.scores.shape(0), top_k = a.top_k;
  const int num_experts = int(a.scores.shape(1));
  if (top_k < 1 || top_k > num_experts) invalid("top_k", "expected 1..", num_experts, ", got ", top_k);
  std::optional<Array<float>> bias;
  const RouterRule rule = rule_of(a, num_experts, bias);
  const uint8_t* exact = table(a.exact, "exact", {num_rows});
  Selection selection = parse_policy(a.selection, int(top_k));
  selection.similarity = table(a.similarity, "similarity", {num_experts, num_experts});
  selection.alias = table(a.alias, "alias", {num_experts});
  selection.replay = table(a.replay, "replay", {num_rows, top_k});
  check_ids("alias", selection.alias, num_experts, 0, num_experts);
  check_ids("replay", selection.replay, num_rows * top_k, -1, num_experts);
  if ((selection.policy == Policy::kSere && !selection.similarity) || (selection.policy == Policy::kAlias && !selection.alias) ||
      (selection.policy == Policy::kReplay && !selection.replay))
    invalid("selection", a.selection, " needs its table");

  Array<int32_t> ids({num_rows, top_k});
  Array<float> weights({num_rows, top_k});
  std::vector<int32_t> active(static_cast<size_t>(num_experts)), wanted(static_cast<size_t>(num_experts));
  Routing routing{ids.mutable_data(), weights.mutable_data(), active.data(), 0, wanted.data()};
  const int32_t* groups = table(a.groups, "groups", {num_rows});
  const SelectionStats stats = selector.run(a.scores.data(), num_rows, rule, selection, parse_phase(a.phase), exact, routing,
                                            groups, table(a.cost, "cost", {num_experts}));
  py::dict result;
  result["ids"] = ids;
  result["weights"] = weights;
  result["active"] = Array<int32_t>(routing.num_active, active.data());
  result["wanted"] = Array<int32_t>(routing.num_wanted, wanted.data());
  result["stats"] = stats_dict(stats);
  return result;
}

py::dict dispatch(const Array<int32_t>& ids, int num_experts) {
  if (ids.ndim() != 2) invalid("ids", "expected [T, k]");
  if (num_experts < 1) invalid("num_experts", "expected at least 1, got ", num_experts);
  for (int64_t pair = 0; pair < ids.size(); ++pair)
    if (ids.data()[pair] < -1 || ids.data()[pair] >= num_experts)
      invalid("ids", "pair ", pair, ": expected -1..", num_experts - 1, ", got ", ids.data()[pair]);

  Array<int32_t> offsets(num_experts + 1);
  Array<int32_t> sorted_of_pair(ids.size());
  std::vector<int32_t> pair_of_sorted(ids.size());
  DispatchPlan plan{offsets.mutable_data(), sorted_of_pair.mutable_data(), pair_of_sorted.data()};
  // dispatch_pairs() reads the ids only.
  const Routing routing{const_cast<int32_t*>(ids.data()), nullptr, nullptr, 0};
  dispatch_pairs(routing, ids.shape(0), RouterRule{.num_experts = num_experts, .top_k = int(ids.shape(1))}, plan);
  py::dict result;
  result["offsets"] = offsets;
  result["sorted_of_pair"] = sorted_of_pair;
  result["pair_of_sorted"] = Array<int32_t>(plan.offsets[num_experts], pair_of_sorted.data());
  return result;
}

}  // namespace

void register_select(py::module_& m) {
  // A Selector object keeps its scratch memory between calls, as in the engine; the function `select` starts with none.
  const auto method = [](Selector& selector, const Array<float>& scores, int top_k, bool norm_topk, const std::string& selection,
                         const std::string& phase, const std::optional<Array<uint8_t>>& exact,
                         const std::optional<Array<float>>& similarity, const std::optional<Array<int32_t>>& alias,
                         const std::optional<Array<int32_t>>& replay, const std::optional<Array<int32_t>>& groups,
                         const std::optional<Array<uint8_t>>& cost, const py::kwargs& rule) {
    return select(selector, {scores, top_k, norm_topk, selection, phase, exact, similarity, alias, replay, groups, cost, rule});
  };
  const auto function = [method](const Array<float>& scores, int top_k, bool norm_topk, const std::string& selection,
                                 const std::string& phase, const std::optional<Array<uint8_t>>& exact,
                                 const std::optional<Array<float>>& similarity, const std::optional<Array<int32_t>>& alias,
                                 const std::optional<Array<int32_t>>& replay, const std::optional<Array<int32_t>>& groups,
                                 const std::optional<Array<uint8_t>>& cost, const py::kwargs& rule) {
    Selector selector;
    return method(selector, scores, top_k, norm_topk, selection, phase, exact, similarity, alias, replay, groups, cost, rule);
  };
#define LYNX_SELECT_ARGS                                                                                \
  py::arg("scores").noconvert(), py::arg("top_k"),                                                      \
      py::arg("norm_topk") = true, py::arg("selection") = "topk", py::arg("phase") = "decode_only",     \
      py::arg("exact") = py::none(), py::arg("similarity") = py::none(), py::arg("alias") = py::none(), \
      py::arg("replay") = py::none(), py::arg("groups") = py::none(), py::arg("cost") = py::none()
  py::class_<Selector>(m, "Selector").def(py::init<>()).def("select", method, LYNX_SELECT_ARGS);
  m.def("select", function,
        "Chooses experts: dict(ids [T, k], weights [T, k], active [n], wanted [m], stats). See Backend::route() in backend.h. "
        "similarity [E, E], alias [E], replay [T, k]: the tables of sere, alias, replay. groups [T]: isolation groups. cost [E]: "
        "0 = resident. Further keywords: kind, bias [E], num_groups, "
        "top_groups, group_top2, scale, min_sum, jitter, the members of RouterRule.",
        LYNX_SELECT_ARGS);
#undef LYNX_SELECT_ARGS
  m.def("dispatch", &dispatch,
        "Orders pairs by expert: dict(offsets [E + 1], sorted_of_pair [T * k], pair_of_sorted [offsets[E]]).",
        py::arg("ids").noconvert(), py::arg("num_experts"));
}

}  // namespace lynx_rt
