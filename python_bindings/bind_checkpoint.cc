// Binds the reading of checkpoint files, for tests.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <cstring>
#include <filesystem>
#include <string>

#include "bindings.h"
#include "checkpoint/safetensors.h"
#include "gil.h"
#include "model/decoder.h"
#include "model/describe.h"
#include "model/families/common/config_keys.h"
#include "model/family.h"
#include "model/load_weights.h"

namespace py = pybind11;

namespace lynx_rt {

namespace {

// Decodes a path in the file system's encoding, because it need not be valid UTF-8.
py::str path_str(const std::string& path) {
  PyObject* text = PyUnicode_DecodeFSDefaultAndSize(path.data(), Py_ssize_t(path.size()));
  if (!text) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(text);
}

Checkpoint open_checkpoint(const std::filesystem::path& path) {
  const ReleaseGil nogil;
  return Checkpoint::open(path.string());
}

py::dict read_checkpoint(const std::filesystem::path& path) {
  const Checkpoint checkpoint = open_checkpoint(path);
  py::dict tensors;
  for (const auto& [name, info] : checkpoint.tensors()) {
    py::tuple shape(info.shape.size());
    for (size_t i = 0; i < info.shape.size(); ++i) shape[i] = py::int_(info.shape[i]);
    tensors[py::str(name)] = py::make_tuple(info.dtype, shape, info.bytes, info.file);
  }
  py::list files;
  for (const MappedFile& file : checkpoint.files()) files.append(path_str(file.path()));
  py::dict out;
  out["tensors"] = tensors;
  out["files"] = files;
  out["total_bytes"] = checkpoint.total_bytes();
  return out;
}

py::array_t<uint8_t> checkpoint_tensor(const std::filesystem::path& path, const std::string& name) {
  const Checkpoint checkpoint = open_checkpoint(path);
  const TensorInfo& info = checkpoint.at(name);
  py::array_t<uint8_t> out(info.bytes);
  if (info.bytes > 0) std::memcpy(out.mutable_data(), info.data, size_t(info.bytes));
  return out;
}

py::tuple rope_angles_of(const std::string& config, int64_t head_dim, int64_t max_positions) {
  ModelConfig m;
  read_rope(ConfigReader::parse(config, "config.json"), head_dim, m, {.partial_rotary = true});
  const RopeAngles angles = rope_angles(m.rope, max_positions);
  return py::make_tuple(angles.inverse, angles.factor);
}

}  // namespace

void register_checkpoint(py::module_& m) {
  m.def("read_checkpoint", &read_checkpoint, py::arg("path"),
        "What a checkpoint holds, without reading tensor data.\n\n"
        "path: a model folder or one .safetensors file. Returns {\"tensors\": {name: (dtype, shape, bytes, file)},\n"
        "\"files\": [path], \"total_bytes\": int}; dtype is the file's own name for it (\"BF16\"), `file` an index\n"
        "into files. Raises ModelNotFoundError, CheckpointError. Test: tests/checkpoint/test_safetensors.py.");
  m.def("checkpoint_tensor", &checkpoint_tensor, py::arg("path"), py::arg("name"),
        "A copy of one tensor's bytes as they lie in the file, a uint8 array [bytes].\n\n"
        "Raises ModelNotFoundError, CheckpointError (also where there is no such tensor).");
  m.def("rope_angles", &rope_angles_of, py::arg("config"), py::arg("head_dim"), py::arg("max_positions"),
        "(radians per position [rotated columns / 2], factor of cosines and sines) by the text of a config.json.");
}

}  // namespace lynx_rt
