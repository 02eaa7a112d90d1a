// Translates lynx_rt::Error to the class in lynx_rt/errors.py that stands for its code.
#include <pybind11/pybind11.h>

#include "base/error.h"
#include "bindings.h"
#include "gil.h"

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

// Decodes a message, which may quote a path that is not valid UTF-8.
static py::str to_str(const std::string& text) {
  PyObject* s = PyUnicode_DecodeUTF8(text.data(), Py_ssize_t(text.size()), "surrogateescape");
  if (!s) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(s);
}

// Raises the error. It uses Python's C API, since Python may end the thread while the class is imported or called, and no object
// here may then need the GIL.
static void raise(const char* class_name, PyObject* text, PyObject* field) {
  PyObject *type = nullptr, *error = nullptr;
  PyObject* errors = PyImport_ImportModule("lynx_rt.errors");
  if (errors) type = PyObject_GetAttrString(errors, class_name);
  if (type) error = PyObject_CallFunctionObjArgs(type, text, field, nullptr);
  if (error) PyErr_SetObject(type, error);
  Py_XDECREF(error);
  Py_XDECREF(type);
  Py_XDECREF(errors);
}

void register_errors(py::module_&) {
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const Error& e) {
      const py::str text = to_str(e.what()), field = to_str(e.field());
      hold_if_ended([&] { raise(class_name(e.code()), text.ptr(), field.ptr()); });
    }
  });
}

}  // namespace lynx_rt
