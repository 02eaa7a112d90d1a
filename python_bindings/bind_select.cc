// Expert selection and dispatch on NumPy arrays, for tests and benches.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "backend/cpu/dispatch.h"
#include "backend/cpu/select.h"
#include "base/error.h"
#include "bindings.h"

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
  d["retained_mass"] = stats.retained_mass;
  d["acted"] = stats.acted;
  d["guard_hit"] = stats.guard_hit;
  return d;
}

py::dict select(Selector& selector, const Array<float>& scores, int top_k, bool norm_topk, const std::string& selection,
                const std::string& phase, const std::optional<Array<uint8_t>>& exact) {
  if (scores.ndim() != 2 || scores.shape(1) < 1) invalid("scores", "expected [T, E] with E >= 1");
  const int64_t num_rows = scores.shape(0);
  const int num_experts = int(scores.shape(1));
  if (top_k < 1 || top_k > num_experts) invalid("top_k", "expected 1..", num_experts, ", got ", top_k);
  if (exact && (exact->ndim() != 1 || exact->shape(0) != num_rows)) invalid("exact", "expected [T=", num_rows, "]");

  Array<int32_t> ids({num_rows, int64_t(top_k)});
  Array<float> weights({num_rows, int64_t(top_k)});
  std::vector<int32_t> active(num_experts);
  Routing routing{ids.mutable_data(), weights.mutable_data(), active.data(), 0};
  const SelectionStats stats =
      selector.run(scores.data(), num_rows, RouterRule{num_experts, top_k, norm_topk}, parse_selection(selection),
                   parse_phase(phase), exact ? exact->data() : nullptr, routing);
  py::dict result;
  result["ids"] = ids;
  result["weights"] = weights;
  result["active"] = Array<int32_t>(routing.num_active, active.data());
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
  Array<int32_t> row_of_pair(ids.size());
  std::vector<int32_t> pair_of_row(ids.size());
  DispatchPlan plan{offsets.mutable_data(), row_of_pair.mutable_data(), pair_of_row.data()};
  // dispatch_pairs() reads the ids only.
  const Routing routing{const_cast<int32_t*>(ids.data()), nullptr, nullptr, 0};
  dispatch_pairs(routing, ids.shape(0), RouterRule{num_experts, int(ids.shape(1)), true}, plan);
  py::dict result;
  result["offsets"] = offsets;
  result["row_of_pair"] = row_of_pair;
  result["pair_of_row"] = Array<int32_t>(plan.offsets[num_experts], pair_of_row.data());
  return result;
}

}  // namespace

void register_select(py::module_& m) {
  // An object keeps its scratch memory between calls, as the engine does; the function starts with none.
  py::class_<Selector>(m, "Selector")
      .def(py::init<>())
      .def("select", &select, py::arg("scores").noconvert(), py::arg("top_k"), py::arg("norm_topk") = true,
           py::arg("selection") = "topk", py::arg("phase") = "decode_only", py::arg("exact") = py::none());
  m.def(
      "select",
      [](const Array<float>& scores, int top_k, bool norm_topk, const std::string& selection, const std::string& phase,
         const std::optional<Array<uint8_t>>& exact) {
        Selector selector;
        return select(selector, scores, top_k, norm_topk, selection, phase, exact);
      },
      "Chooses experts: dict(ids [T, k], weights [T, k], active [n], stats). See Backend::select() in backend.h.",
      py::arg("scores").noconvert(), py::arg("top_k"), py::arg("norm_topk") = true, py::arg("selection") = "topk",
      py::arg("phase") = "decode_only", py::arg("exact") = py::none());
  m.def("dispatch", &dispatch, "Orders pairs by expert: dict(offsets [E + 1], row_of_pair [T * k], pair_of_row [offsets[E]]).",
        py::arg("ids").noconvert(), py::arg("num_experts"));
  m.def(
      "parse_selection", [](const std::string& text) { return to_string(parse_selection(text)); },
      "The canonical form of an expert-selection text; ValidationError for an unknown policy, key or value.", py::arg("text"));
}

}  // namespace lynx_rt
