// Binds the vision tower of a checkpoint on NumPy arrays, for tests and benches.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <string>

#include "arrays.h"
#include "bindings.h"
#include "gil.h"
#include "model/family.h"
#include "model/load_weights.h"
#include "model/vision/vision_tower.h"

namespace lynx_rt {

namespace {

// A model folder's tower and the memory that it needs. The text model is loaded with it, and not run.
class LoadedTower {
 public:
  LoadedTower(const std::string& path, const std::string& dtype, int num_threads, const std::string& isa,
              const std::string& quantization, int64_t max_patches, bool dummy)
      : config_(read_model_config(path)) {
    BackendOptions options{"cpu", dtype_of(dtype), num_threads, isa};
    options.quantization = parse_quantization(quantization);
    backend_ = make_backend(options);
    if (dummy) {
      load_dummy_weights(config_, false, weights_);
    } else {
      checkpoint_ = Checkpoint::open(path);
      load_weights(config_, checkpoint_, weights_);
    }
    if (!weights_.vision) fail(ErrorCode::kUnsupported, "path", path, ": the model has no vision tower");
    place_weights(*backend_, weights_, {});
    tower_ = std::make_unique<VisionTower>(*backend_, *config_.vision, *weights_.vision, max_patches);
  }

  // patches [grid_height * grid_width, patch columns] -> [rows, out columns]. blocks: those of one advance().
  Floats encode(const Floats& patches, int64_t grid_height, int64_t grid_width, int64_t blocks) {
    require_columns(patches, config_.vision->patch_columns());
    if (grid_height > 0 && grid_width > 0 && patches.shape(0) != grid_height * grid_width)
      invalid("patches", "expected ", grid_height * grid_width, " rows, got ", patches.shape(0));
    const ImagePatches rows(*config_.vision, {patches.data(), patches.data() + patches.size()});
    {
      const ReleaseGil nogil;
      tower_->begin(rows, grid_height, grid_width);
      while (!tower_->advance(blocks)) {
      }
    }
    Floats out({tower_->num_rows(), config_.vision->out_columns()});
    tower_->output(out.mutable_data());
    return out;
  }

  // Seconds of each op since the last call.
  py::dict profile() {
    py::dict d;
    for (const OpProfile& op : backend_->profile())
      if (op.calls > 0) d[op.name] = op.seconds;
    backend_->reset_profile();
    return d;
  }

  int64_t weight_bytes() const { return lynx_rt::weight_bytes(weights_); }
  std::string description() const { return backend_->description(); }

 private:
  ModelConfig config_;
  Checkpoint checkpoint_;
  std::unique_ptr<Backend> backend_;
  ModelWeights weights_;
  std::unique_ptr<VisionTower> tower_;
};

}  // namespace

void register_vision(py::module_& m) {
  py::class_<LoadedTower>(m, "VisionTower")
      .def(py::init<const std::string&, const std::string&, int, const std::string&, const std::string&, int64_t, bool>(),
           py::arg("path"), py::arg("dtype") = "float32", py::arg("num_threads") = 1, py::arg("isa") = "",
           py::arg("quantization") = "none", py::arg("max_patches") = 4096, py::arg("dummy") = false)
      .def("encode", &LoadedTower::encode, py::arg("patches"), py::arg("grid_height"), py::arg("grid_width"),
           py::arg("blocks") = 1)
      .def("profile", &LoadedTower::profile)
      .def("weight_bytes", &LoadedTower::weight_bytes)
      .def("description", &LoadedTower::description);
}

}  // namespace lynx_rt
