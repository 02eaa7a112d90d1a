// The register functions, one per file. module.cc calls those of _C, module_testing.cc those of _C_testing.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>
#include <functional>

namespace lynx_rt {
// Returns a function that calls a Python callable with (done, total), from any thread; what it raises is thrown. Empty for None.
std::function<void(int64_t, int64_t)> progress_callback(pybind11::handle callable);

void register_errors(pybind11::module_& m);  // _C and _C_testing
void register_engine(pybind11::module_& m);
void register_inspect(pybind11::module_& m);

void register_attention(pybind11::module_& m);
void register_checkpoint(pybind11::module_& m);
void register_gated_delta(pybind11::module_& m);
void register_ops(pybind11::module_& m);
void register_select(pybind11::module_& m);
void register_tiers(pybind11::module_& m);
void register_vision(pybind11::module_& m);
}  // namespace lynx_rt
