// Converts what the engine returns to Python objects: lists, dicts and NumPy arrays, with the names of engine.h.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <vector>

#include "lynx_rt/engine.h"

namespace lynx_rt {

namespace py = pybind11;

py::list to_list(const std::vector<TokenLogprobs>& tokens);  // per token a list of (id, logprob, rank)
py::object to_object(FinishReason reason);                   // None = not finished
py::object to_object(const RoutedExperts& experts);          // None = not recorded
py::dict to_dict(RouterLogits&& logits);
py::dict to_dict(const EngineStats::Layer& layer);
py::dict to_dict(const EngineStats& stats);
py::dict to_dict(const ModelInfo& info);

// Returns an array that owns the values, without copying them.
template <class T>
py::array_t<T> to_array(std::vector<T>&& values, const std::vector<int64_t>& shape) {
  auto* kept = new std::vector<T>(std::move(values));
  const py::capsule owner(kept, [](void* p) { delete static_cast<std::vector<T>*>(p); });
  return py::array_t<T>(shape, kept->data(), owner);
}

}  // namespace lynx_rt
