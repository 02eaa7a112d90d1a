#include "bindings.h"

#include "backend/backend.h"
#include "backend/cpu/bandwidth.h"
#include "base/cpu_features.h"
#include "base/memory.h"
#include "gil.h"
#include "lynx_rt/version.h"

#include <pybind11/stl.h>

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
        d["usable_cores"] = usable_cores();
        d["available_memory_bytes"] = free_memory_bytes();
        d["compiler"] = "gcc-compatible " __VERSION__;
        d["cuda"] = describe_cuda();
        return d;
      },
      "How this build was made, what this CPU offers and what this process may use of it.");
  py::class_<lynx_rt::BandwidthProbe>(m, "BandwidthProbe", "A buffer to read: the rate that decode is measured against.")
      .def(py::init<int, int64_t>(), py::arg("num_threads") = 0, py::arg("bytes") = int64_t(1) << 29)
      .def("measure", &lynx_rt::BandwidthProbe::measure, py::call_guard<lynx_rt::ReleaseGil>(),
           "GB/s (1e9) of one pass of all threads over the buffer.");
}
