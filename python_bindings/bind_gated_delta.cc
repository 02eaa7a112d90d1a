// Binds gated_delta_rule() on NumPy arrays, for tests and benches.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "arrays.h"
#include "bindings.h"

namespace lynx_rt {

namespace {

// The states of one layer: `num_slots` of them, zeros at the start.
class States {
 public:
  States(Backend& backend, int64_t num_slots, const std::array<int64_t, 5>& shape, bool tiled)
      : backend_(backend),
        shape_{shape[0], shape[1], shape[2], shape[3], shape[4], tiled},
        num_slots_(num_slots),
        stride_(round_up(shape_.state_size() * int64_t(sizeof(float)), 64)),
        memory_(backend, num_slots * stride_, "states") {}

  // x [T, columns] with the heads' columns at (first, stride) for each of q, k, v, z, b, a; slots [S]; query_start [S + 1] -> [T, vh dv].
  Floats run(const Floats& x, const std::array<std::pair<int64_t, int64_t>, 6>& at, const Floats& conv, const Floats& rate,
             const Floats& dt_bias, const py::array& norm, float eps, const Ints& slots, const Ints& query_start) {
    Floats work({x.shape(0), x.shape(1)});
    std::copy(x.data(), x.data() + x.size(), work.mutable_data());
    const auto columns = [&](size_t i) { return HeadColumns{at[i].first, at[i].second}; };
    const GatedDeltaArgs args{work.mutable_data(),
                              x.shape(1),
                              shape_,
                              columns(0),
                              columns(1),
                              columns(2),
                              columns(3),
                              columns(4),
                              columns(5),
                              {conv.data(), DType::kF32, conv.shape(0), conv.shape(1)},
                              {rate.data(), DType::kF32, 1, rate.size()},
                              {dt_bias.data(), DType::kF32, 1, dt_bias.size()},
                              weight(norm),
                              eps};
    std::vector<int32_t> positions(size_t(x.shape(0)), 0);
    BatchView batch;
    batch.num_rows = x.shape(0);
    batch.num_seqs = slots.size();
    batch.query_start = query_start.data();
    batch.positions = positions.data();
    batch.state_slots = slots.data();
    Activations out(backend_, batch.num_rows, shape_.values(), "test");
    backend_.gated_delta_rule(args, backend_.begin_step(batch), {memory_.get(), stride_}, out);
    return to_array(out);
  }

  // The state of a slot: S [vh, dk, dv], then the last inputs [W - 1, C], flat.
  Floats state(int64_t slot) const {
    Floats out(shape_.state_size());
    backend_.read(out.mutable_data(), memory_.get() + slot * stride_, shape_.state_size() * int64_t(sizeof(float)));
    return out;
  }

 private:
  Backend& backend_;
  DeltaShape shape_;
  int64_t num_slots_, stride_;
  DeviceArray<char> memory_;
};

}  // namespace

void register_gated_delta(py::module_& m) {
  py::class_<States>(m, "GatedDelta")
      .def(py::init<Backend&, int64_t, const std::array<int64_t, 5>&, bool>(), py::keep_alive<1, 2>(), py::arg("backend"),
           py::arg("num_slots"), py::arg("shape"), py::arg("tiled") = false)
      .def("run", &States::run, py::arg("x"), py::arg("at"), py::arg("conv"), py::arg("rate"), py::arg("dt_bias"),
           py::arg("norm"), py::arg("eps"), py::arg("slots"), py::arg("query_start"))
      .def("state", &States::state, py::arg("slot"));
}

}  // namespace lynx_rt
