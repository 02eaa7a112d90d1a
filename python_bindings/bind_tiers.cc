// Binds the bookkeeping of resident experts, for tests.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings.h"
#include "tiers/residency.h"

namespace py = pybind11;

namespace lynx_rt {

namespace {

py::dict simulate(const std::string& policy, const std::vector<int64_t>& quota, int64_t num_experts, const ExpertHistory& used,
                  const ExpertHistory& lists, const ExpertHistory& wanted) {
  Residency residency(parse_residency(policy), quota, num_experts, lists);
  py::list residents, counts;  // [layers][steps], before the step; [layers]
  for (size_t l = 0; l < used.size(); ++l) {
    py::list of_layer;
    for (size_t s = 0; s < used[l].size(); ++s) {
      const std::vector<int32_t>& experts = used[l][s];
      py::list now;
      for (int64_t e = 0; e < num_experts; ++e)
        if (residency.cost(int64_t(l))[size_t(e)] == 0) now.append(e);
      of_layer.append(now);
      residency.update(int64_t(l), experts, wanted.empty() ? experts : wanted.at(l).at(s));
    }
    residents.append(of_layer);
    const Residency::Counts& c = residency.counts(int64_t(l));
    counts.append(py::make_tuple(c.used, c.hits, c.reads, c.inserted, c.evicted));
  }
  return py::dict(py::arg("residents") = residents, py::arg("counts") = counts);
}

}  // namespace

void register_tiers(py::module_& m) {
  m.def("simulate_residency", &simulate, py::arg("policy"), py::arg("quota"), py::arg("num_experts"), py::arg("used"),
        py::arg("lists") = ExpertHistory(), py::arg("wanted") = ExpertHistory());
  m.def("uniform_quota", &uniform_quota, py::arg("slots"), py::arg("num_layers"), py::arg("num_experts"));
}

}  // namespace lynx_rt
