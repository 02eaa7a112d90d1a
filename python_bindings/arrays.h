// Converts between NumPy arrays and the types that ops take. Arrays of weights are float32, float16, or uint16 that holds bf16
// bits.
#pragma once
#include <pybind11/numpy.h>

#include <algorithm>
#include <optional>

#include "backend/device_array.h"
#include "base/error.h"

namespace lynx_rt {

namespace py = pybind11;

using Floats = py::array_t<float, py::array::c_style>;
using Ints = py::array_t<int32_t, py::array::c_style>;

inline DType dtype_of(const std::string& name) {
  for (DType t : {DType::kF32, DType::kBF16, DType::kF16})
    if (name == dtype_name(t)) return t;
  invalid("dtype", "expected float32, bfloat16 or float16, got \"", name, "\"");
}

inline WeightView weight(const py::array& a) {
  if (!(a.flags() & py::array::c_style) || a.ndim() < 1 || a.ndim() > 2)
    invalid("weight", "expected a contiguous array of 1 or 2 dimensions");
  DType t = a.dtype().kind() == 'u' ? DType::kBF16 : a.itemsize() == 2 ? DType::kF16 : DType::kF32;
  if (a.itemsize() != dtype_size(t)) invalid("weight", "expected float32, float16 or uint16 (bf16 bits)");
  return {a.data(), t, a.ndim() == 2 ? a.shape(0) : 1, a.shape(a.ndim() - 1)};
}

inline WeightView weight(const std::optional<py::array>& a) { return a ? weight(*a) : WeightView{}; }

inline void require_columns(const Floats& x, int64_t columns) {
  if (x.ndim() != 2 || x.shape(1) != columns) invalid("x", "expected [T, ", columns, "]");
}

// Returns a view of an array's rows. The caller keeps the array alive.
inline Activations activations(const Floats& x) { return {x.data(), x.shape(0), x.shape(1)}; }

// Returns a copy of rows that are in host memory.
inline Floats to_array(const Activations& x) {
  Floats out({x.num_rows(), x.num_columns()});
  std::copy_n(x.f32(), out.size(), out.mutable_data());
  return out;
}

}  // namespace lynx_rt
