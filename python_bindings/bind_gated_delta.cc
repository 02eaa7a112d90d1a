// Binds the ops that keep a state on NumPy arrays, for tests and benches.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "arrays.h"
#include "bindings.h"

namespace lynx_rt {

namespace {

WeightView floats(const Floats& w) {
  return {w.data(), DType::kF32, w.ndim() == 1 ? 1 : w.shape(0), w.ndim() == 1 ? w.size() : w.shape(1)};
}
WeightView floats(const std::optional<Floats>& w) { return w ? floats(*w) : WeightView{}; }

// The states of one layer: `num_slots` of `size` values, zeros at the start.
class States {
 public:
  States(Backend& backend, int64_t num_slots, int64_t size)
      : backend_(backend),
        size_(size),
        stride_(round_up(size * int64_t(sizeof(float)), 64)),
        memory_(backend, num_slots * stride_, "states") {}

  StateView view() const { return {memory_.get(), stride_}; }
  // The state of a slot, flat.
  Floats state(int64_t slot) const {
    Floats out(size_);
    backend_.read(out.mutable_data(), memory_.get() + slot * stride_, size_ * int64_t(sizeof(float)));
    return out;
  }

 protected:
  // Calls op(columns, batch, out) with a copy of x [T, columns + room]; slots [S], query_start [S + 1]. Returns out [T, `values`].
  template <class Op>
  Floats run_rows(const Floats& x, int64_t room, const Ints& slots, const Ints& query_start, int64_t values, Op op) {
    const int64_t rows = x.shape(0), columns = x.shape(1);
    std::vector<float> work(size_t(rows * (columns + room)));
    for (int64_t t = 0; t < rows; ++t) std::copy_n(x.data() + t * columns, columns, work.data() + t * (columns + room));
    std::vector<int32_t> positions(size_t(rows), 0);
    BatchView batch;
    batch.num_rows = rows;
    batch.num_seqs = slots.size();
    batch.query_start = query_start.data();
    batch.positions = positions.data();
    batch.state_slots = slots.data();
    Activations out(backend_, rows, values, "test");
    op(work.data(), backend_.begin_step(batch), out);
    return to_array(out);
  }

  Backend& backend_;

 private:
  int64_t size_, stride_;
  DeviceArray<char> memory_;
};

class GatedDelta : public States {
 public:
  GatedDelta(Backend& backend, int64_t num_slots, const std::array<int64_t, 5>& shape, bool tiled, bool channel_decay)
      : GatedDelta(backend, num_slots, DeltaShape{shape[0], shape[1], shape[2], shape[3], shape[4], tiled, channel_decay}) {}

  // x [T, columns] with the heads' columns at (first, stride) for each of q, k, v, z, b, a; slots [S]; query_start [S + 1] -> [T, vh dv].
  // conv: [W, columns] of q, k and v.
  Floats run(const Floats& x, const std::array<std::pair<int64_t, int64_t>, 6>& at, const std::array<Floats, 3>& conv,
             const Floats& rate, const Floats& dt_bias, const py::array& norm, float eps, const Ints& slots,
             const Ints& query_start, bool sigmoid_gate) {
    const auto columns = [&](size_t i) { return HeadColumns{at[i].first, at[i].second}; };
    const GatedDeltaArgs args{
        nullptr,      x.shape(1),      shape_,       columns(0), columns(1),
        columns(2),   columns(3),      columns(4),   columns(5), {floats(conv[0]), floats(conv[1]), floats(conv[2])},
        floats(rate), floats(dt_bias), weight(norm), eps,        sigmoid_gate};
    return run_rows(x, 0, slots, query_start, shape_.values(), [&](float* work, const BatchView& batch, Activations& out) {
      GatedDeltaArgs of_rows = args;
      of_rows.x = work;
      backend_.gated_delta_rule(of_rows, batch, view(), out);
    });
  }

 private:
  GatedDelta(Backend& backend, int64_t num_slots, const DeltaShape& shape)
      : States(backend, num_slots, shape.state_size()), shape_(shape) {}

  DeltaShape shape_;
};

class Mamba2 : public States {
 public:
  Mamba2(Backend& backend, int64_t num_slots, const std::array<int64_t, 5>& shape)
      : Mamba2(backend, num_slots, Mamba2Shape{shape[0], shape[1], shape[2], shape[3], shape[4]}) {}

  // x [T, columns of z, x, B, C, dt] -> [T, heads * head_dim]; limits: the bounds of dt.
  Floats run(const Floats& x, const Floats& conv, const std::optional<Floats>& conv_bias, const Floats& rate,
             const Floats& dt_bias, const Floats& skip, const py::array& norm, float eps, std::pair<float, float> limits,
             const Ints& slots, const Ints& query_start) {
    return run_rows(x, shape_.heads, slots, query_start, shape_.values(),
                    [&](float* work, const BatchView& batch, Activations& out) {
                      const Mamba2Args args{work,
                                            x.shape(1) + shape_.heads,
                                            shape_,
                                            floats(conv),
                                            floats(conv_bias),
                                            floats(rate),
                                            floats(dt_bias),
                                            floats(skip),
                                            weight(norm),
                                            eps,
                                            limits.first,
                                            limits.second};
                      backend_.mamba2(args, batch, view(), out);
                    });
  }

 private:
  Mamba2(Backend& backend, int64_t num_slots, const Mamba2Shape& shape)
      : States(backend, num_slots, shape.state_size()), shape_(shape) {}

  Mamba2Shape shape_;
};

class ShortConv : public States {
 public:
  ShortConv(Backend& backend, int64_t num_slots, int64_t channels, int64_t width)
      : States(backend, num_slots, (width - 1) * channels), channels_(channels) {}

  // x [T, 3 H] of b, c and x -> [T, H].
  Floats run(const Floats& x, const Floats& conv, const std::optional<Floats>& bias, const Ints& slots, const Ints& query_start) {
    return run_rows(x, 0, slots, query_start, channels_, [&](float* work, const BatchView& batch, Activations& out) {
      backend_.short_conv({work, x.shape(1), channels_, floats(conv), floats(bias)}, batch, view(), out);
    });
  }

 private:
  int64_t channels_;
};

}  // namespace

void register_gated_delta(py::module_& m) {
  py::class_<GatedDelta>(m, "GatedDelta")
      .def(py::init<Backend&, int64_t, const std::array<int64_t, 5>&, bool, bool>(), py::keep_alive<1, 2>(), py::arg("backend"),
           py::arg("num_slots"), py::arg("shape"), py::arg("tiled") = false, py::arg("channel_decay") = false)
      .def("run", &GatedDelta::run, py::arg("x"), py::arg("at"), py::arg("conv"), py::arg("rate"), py::arg("dt_bias"),
           py::arg("norm"), py::arg("eps"), py::arg("slots"), py::arg("query_start"), py::arg("sigmoid_gate") = false)
      .def("state", &GatedDelta::state, py::arg("slot"));  // S [vh, dk, dv], then the last inputs [W - 1, C]
  py::class_<Mamba2>(m, "Mamba2")
      .def(py::init<Backend&, int64_t, const std::array<int64_t, 5>&>(), py::keep_alive<1, 2>(), py::arg("backend"),
           py::arg("num_slots"), py::arg("shape"))
      .def("run", &Mamba2::run, py::arg("x"), py::arg("conv"), py::arg("conv_bias"), py::arg("rate"), py::arg("dt_bias"),
           py::arg("skip"), py::arg("norm"), py::arg("eps"), py::arg("limits"), py::arg("slots"), py::arg("query_start"))
      .def("state", &Mamba2::state, py::arg("slot"));  // S [heads, state_dim, head_dim], then the last inputs [W - 1, C]
  py::class_<ShortConv>(m, "ShortConv")
      .def(py::init<Backend&, int64_t, int64_t, int64_t>(), py::keep_alive<1, 2>(), py::arg("backend"), py::arg("num_slots"),
           py::arg("channels"), py::arg("width"))
      .def("run", &ShortConv::run, py::arg("x"), py::arg("conv"), py::arg("bias"), py::arg("slots"), py::arg("query_start"))
      .def("state", &ShortConv::state, py::arg("slot"));  // the last inputs [W - 1, H]
}

}  // namespace lynx_rt
