#include "bindings.h"

#include "backend/backend.h"
#include "backend/cpu/bandwidth.h"
#include "backend/cpu/core_meter.h"
#include "base/cpu_features.h"
#include "base/cpu_topology.h"
#include "base/memory.h"
#include "gil.h"
#include "lynx_rt/version.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <system_error>

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "C++ core of lynx_rt";
  m.attr("__version__") = LYNX_RT_VERSION;
  lynx_rt::register_errors(m);
  lynx_rt::register_engine(m);
  lynx_rt::register_inspect(m);

  m.def(
      "build_info",
      [] {
        using namespace lynx_rt;
        std::vector<std::string> isas;
        for (Isa isa : supported_isas()) isas.push_back(isa_name(isa));
        py::dict d;
        d["version"] = LYNX_RT_VERSION;
        d["isa"] = isa_name(resolve_isa(""));
        d["supported_isas"] = isas;
        d["cpu_model"] = cpu_model();
        d["usable_cores"] = usable_cores();
        d["available_memory_bytes"] = free_memory_bytes();
        d["compiler"] = "gcc-compatible " __VERSION__;
        d["cuda"] = describe_cuda();
        return d;
      },
      "How this build was made, what this CPU offers and what this process may use of it.");
  m.def(
      "cpu_threads",
      [](int num_threads) {
        using namespace lynx_rt;
        CpuTopology cpus;
        ThreadPlan plan;
        PlanErrors errors;
        {
          ReleaseGil unlocked;
          cpus = read_cpu_topology();
          plan = plan_computing(num_threads);
          errors = try_plan(plan);
        }
        py::list kinds;
        for (int kind = 0; kind < int(cpus.kinds.size()); ++kind) {
          py::dict d;
          d["name"] = cpus.kinds[size_t(kind)];
          d["cores"] = cpus.num_cores(kind);
          d["cpus"] = std::count_if(cpus.cpus.begin(), cpus.cpus.end(), [&](const Cpu& cpu) { return cpu.kind == kind; });
          kinds.append(d);
        }
        const auto text = [](int error) { return error == 0 ? std::string() : std::system_category().message(error); };
        py::dict d;
        d["num_threads"] = plan.num_threads;
        d["reason"] = plan.reason;
        d["kinds"] = kinds;
        d["nodes"] = cpus.nodes();
        d["cpu_quota"] = cpus.quota > 0 ? py::object(py::float_(cpus.quota)) : py::none();
        d["bound_to"] = plan.groups;
        d["bind_error"] = text(errors.bind);
        d["interleaved_nodes"] = plan.nodes;
        d["interleave_error"] = text(errors.interleave);
        return d;
      },
      py::arg("num_threads") = 0,
      "The threads of an engine on the CPU, and what they were chosen by; measures cores that differ.");
  py::class_<lynx_rt::BandwidthProbe>(m, "BandwidthProbe", "A buffer to read: the rate that decode is measured against.")
      .def(py::init<int, int64_t>(), py::arg("num_threads") = 0, py::arg("bytes") = int64_t(1) << 29)
      .def("measure", &lynx_rt::BandwidthProbe::measure, py::call_guard<lynx_rt::ReleaseGil>(),
           "GB/s (1e9) of one pass of all threads over the buffer.");
}
