// lynx_rt::Error -> the class of lynx_rt/errors.py that stands for its code.
#include <pybind11/pybind11.h>

#include "base/error.h"
#include "bindings.h"

namespace py = pybind11;

namespace lynx_rt {

static const char* class_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument: return "ValidationError";
    case ErrorCode::kUnsupported: return "UnsupportedModelError";
    case ErrorCode::kNotFound: return "ModelNotFoundError";
    case ErrorCode::kCorruptFile: return "CheckpointError";
    case ErrorCode::kOutOfMemory: return "OutOfMemoryError";
    case ErrorCode::kQueueFull: return "QueueFullError";
    case ErrorCode::kClosed: return "EngineClosedError";
    case ErrorCode::kDevice: return "DeviceError";
    case ErrorCode::kInternal: break;
  }
  return "InternalError";
}

// Messages may quote a path, which need not be UTF-8.
static py::str to_str(const std::string& text) {
  PyObject* s = PyUnicode_DecodeUTF8(text.data(), Py_ssize_t(text.size()), "surrogateescape");
  if (!s) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(s);
}

void register_errors(py::module_&) {
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const Error& e) {
      py::object type = py::module_::import("lynx_rt.errors").attr(class_name(e.code()));
      py::object error = type(to_str(e.what()), to_str(e.field()));
      PyErr_SetObject(type.ptr(), error.ptr());
    }
  });
}

}  // namespace lynx_rt
