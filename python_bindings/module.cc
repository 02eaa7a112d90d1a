#include "bindings.h"

#include "base/cpu_features.h"
#include "backend/cpu/cpu_backend.h"
#include "lynx_rt/version.h"

#include <pybind11/stl.h>

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "C++ core of lynx_rt";
  m.attr("__version__") = LYNX_RT_VERSION;
  lynx_rt::register_errors(m);
  lynx_rt::register_engine(m);
  lynx_rt::register_ops(m);
  lynx_rt::register_checkpoint(m);
  lynx_rt::register_select(m);

  m.def("build_info", [] {
    using namespace lynx_rt;
    std::vector<std::string> isas;
    for (Isa isa : supported_isas()) isas.push_back(isa_name(isa));
    const char* env = std::getenv("LYNX_RT_ISA");
    py::dict d;
    d["version"] = LYNX_RT_VERSION;
    d["isa"] = isa_name(resolve_isa(env ? env : ""));
    d["supported_isas"] = isas;
    d["usable_cores"] = usable_cores();
    d["compiler"] = "gcc-compatible " __VERSION__;
    d["cuda"] = "no: built without CUDA";
    return d;
  }, "How this build was made and what this CPU offers.");
  m.def("read_bandwidth", &lynx_rt::read_bandwidth, py::arg("num_threads") = 0, py::arg("bytes") = int64_t(1) << 30,
        py::arg("seconds") = 1.0, py::call_guard<py::gil_scoped_release>(),
        "Best rate, in GB/s (1e9), at which the threads read `bytes` of memory, over passes for about `seconds`.");
}
