// Binds single backend ops on NumPy arrays, for tests and benches. The attention ops are in bind_attention.cc.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>

#include "arrays.h"
#include "backend/cpu/quantize.h"
#include "bindings.h"
#include "routing/dispatch.h"

namespace lynx_rt {

namespace {

// A weight that a backend has placed, and the objects that keep its memory alive.
struct PlacedWeight {
  WeightView view;
  py::object backend, array;
};

WeightView any_weight(const py::object& w) {
  if (py::isinstance<PlacedWeight>(w)) return w.cast<PlacedWeight&>().view;
  return weight(w.cast<py::array>());
}

Activation activation_of(const std::string& name) {
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  if (name == "gelu") return Activation::kGelu;
  if (name == "relu2") return Activation::kRelu2;
  invalid("activation", "expected silu, gelu_tanh, gelu or relu2, got \"", name, "\"");
}

// Returns where an op writes its rows: zeros that it adds to, or NaN that it replaces.
Floats output(int64_t rows, int64_t columns, bool accumulate) {
  Floats out({rows, columns});
  std::fill_n(out.mutable_data(), out.size(), accumulate ? 0.0f : std::numeric_limits<float>::quiet_NaN());
  return out;
}

// Returns the integers [N, K] and the scales [N, groups of K] of a quantised weight.
py::tuple quantized_values(const PlacedWeight& w) {
  py::array_t<int8_t> values({w.view.rows, w.view.cols});
  Floats scales({w.view.rows, quantized_groups(w.view)});
  read_quantized(w.view, values.mutable_data(), scales.mutable_data());
  return py::make_tuple(values, scales);
}

}  // namespace

void register_ops(py::module_& m) {
  py::class_<Backend>(m, "Backend")
      .def(py::init([](const std::string& device, const std::string& dtype, int num_threads, const std::string& isa,
                       const std::string& quantization) {
             BackendOptions o{device, dtype_of(dtype), num_threads, isa};
             o.quantization = parse_quantization(quantization);
             return make_backend(o);
           }),
           py::arg("device") = "cpu", py::arg("dtype") = "float32", py::arg("num_threads") = 1, py::arg("isa") = "",
           py::arg("quantization") = "none")
      .def("place",
           [](py::object self, const py::array& w) {
             ExpertWeights one;
             one.gate = weight(w);  // not place(), which makes "int4" int8
             self.cast<Backend&>().place_experts({&one, 1});
             return PlacedWeight{one.gate, self, w};
           })
      .def("description", &Backend::description)
      .def(
          "embed",
          [](Backend& b, const py::array& table, const Ints& ids, float scale) {
            WeightView w = weight(table);
            Floats out({int64_t(ids.size()), w.cols});
            b.embed(w, ids.data(), ids.size(), out.mutable_data(), scale);
            return out;
          },
          py::arg("table"), py::arg("ids"), py::arg("scale") = 1.0f)
      .def("set_rows",
           [](Backend& b, const Floats& from, const Floats& x, bool accumulate) {
             if (x.shape(0) != from.shape(0)) invalid("x", "expected ", from.shape(0), " rows, got ", x.shape(0));
             Floats out({x.shape(0), x.shape(1)});
             std::copy(x.data(), x.data() + x.size(), out.mutable_data());
             b.set_rows(from.data(), from.shape(1), from.shape(0), x.shape(1), accumulate, out.mutable_data());
             return out;
           })
      .def("layernorm",
           [](Backend& b, const Floats& x, const py::array& w, const py::array& bias, float eps) {
             require_columns(x, weight(w).cols);
             Activations out(b, x.shape(0), x.shape(1), "test");
             b.layernorm(x.data(), weight(w), weight(bias), eps, x.shape(0), out);
             return to_array(out);
           })
      .def("rmsnorm",
           [](Backend& b, const Floats& x, const py::array& w, float eps) {
             require_columns(x, weight(w).cols);
             Activations out(b, x.shape(0), x.shape(1), "test");
             b.rmsnorm(x.data(), weight(w), eps, x.shape(0), out);
             return to_array(out);
           })
      // Returns what x, or NaN where it is none, becomes.
      .def(
          "add_rmsnorm",
          [](Backend& b, const Floats& y, const py::array& w, float eps, const std::optional<Floats>& x,
             const std::optional<py::array>& scale) {
            require_columns(y, weight(w).cols);
            Floats out = output(y.shape(0), y.shape(1), false);
            if (x) std::copy(x->data(), x->data() + x->size(), out.mutable_data());
            b.add_rmsnorm(y.data(), weight(w), eps, y.shape(0), x.has_value(), out.mutable_data(), weight(scale));
            return out;
          },
          py::arg("y"), py::arg("weight"), py::arg("eps"), py::arg("x") = py::none(), py::arg("scale") = py::none())
      .def(
          "logits",
          [](Backend& b, const Floats& x, const py::array& w, float scale, float soft_cap) {
            require_columns(x, weight(w).cols);
            Floats out({x.shape(0), weight(w).rows});
            b.logits(activations(x), weight(w), {}, scale, out.mutable_data(), soft_cap);
            return out;
          },
          py::arg("x"), py::arg("weight"), py::arg("scale") = 1.0f, py::arg("soft_cap") = 0.0f)
      .def(
          "linear",
          [](Backend& b, const Floats& x, const py::object& w, const std::optional<py::array>& bias, std::optional<Floats> add_to,
             float scale) {
            LinearPart part{any_weight(w), weight(bias), 0};
            require_columns(x, part.weight.cols);
            Floats out({x.shape(0), part.weight.rows});
            if (add_to) std::copy(add_to->data(), add_to->data() + add_to->size(), out.mutable_data());
            b.linear(activations(x), {&part, 1}, add_to.has_value(), out.mutable_data(), part.weight.rows, scale);
            return out;
          },
          py::arg("x"), py::arg("weight"), py::arg("bias") = py::none(), py::arg("add_to") = py::none(), py::arg("scale") = 1.0f)
      // x [T, A, X] with X >= first_column + K, weights A of [N, K]; returns [T, A, M]: columns [out_column, out_column + N) of
      // each head are computed, the others are `fill`.
      .def(
          "head_linear",
          [](Backend& b, const py::array_t<float, py::array::c_style>& x, int64_t first_column,
             const std::vector<py::array>& weights, int64_t out_columns, int64_t out_column, float fill) {
            std::vector<WeightView> views;
            for (const py::array& w : weights) views.push_back(weight(w));
            const int64_t rows = x.shape(0), heads = x.shape(1), columns = x.shape(2);
            if (int64_t(views.size()) != heads || first_column < 0 || views.at(0).cols + first_column > columns)
              invalid("x", "expected [T, heads, columns]");
            py::array_t<float, py::array::c_style> out({rows, heads, out_columns});
            std::fill_n(out.mutable_data(), out.size(), fill);
            if (out_column < 0 || out_column + views[0].rows > out_columns) invalid("out_column", "reaches past out_columns");
            b.place_heads(views);
            b.head_linear({x.data() + first_column, rows, heads * columns}, columns, views, out.mutable_data() + out_column,
                          heads * out_columns, out_columns);
            return out;
          },
          py::arg("x"), py::arg("first_column"), py::arg("weights"), py::arg("out_columns"), py::arg("out_column") = 0,
          py::arg("fill") = 0.0f)
      .def(
          "router",
          [](Backend& b, const Floats& x, const py::array& w, const std::optional<py::array>& bias, float scale) {
            require_columns(x, weight(w).cols);
            Floats out({x.shape(0), weight(w).rows});
            b.router(x.data(), weight(w), weight(bias), x.shape(0), out.mutable_data(), scale);
            return out;
          },
          py::arg("x"), py::arg("weight"), py::arg("bias") = py::none(), py::arg("scale") = 1.0f)
      .def(
          "expert_ffn",
          [](Backend& b, const Floats& x, const std::vector<py::object>& gate, const std::vector<py::object>& up,
             const std::vector<py::object>& down, const Ints& ids, const Floats& weights,
             const std::optional<std::vector<std::vector<py::array>>>& biases,
             std::optional<std::pair<float, float>> clamped_swiglu, bool scale_input, const std::string& activation,
             const std::optional<Floats>& expert_scale, bool accumulate) {
            // ids [T, k] with -1 = none, weights [T, k]; biases: gate, up, down of each expert; clamped_swiglu: alpha, limit;
            // expert_scale [E]; returns [T, H].
            std::vector<ExpertWeights> experts;
            for (size_t e = 0; e < gate.size(); ++e) {
              ExpertWeights& w = experts.emplace_back();
              w.gate = any_weight(gate[e]);
              if (!up.empty()) w.up = any_weight(up[e]);
              w.down = any_weight(down[e]);
              if (!biases) continue;
              w.gate_bias = weight(biases->at(0).at(e));
              if (!up.empty()) w.up_bias = weight(biases->at(1).at(e));
              w.down_bias = weight(biases->at(2).at(e));
            }
            FfnRule ffn;
            ffn.scale_input = scale_input;
            ffn.activation = activation_of(activation);
            if (expert_scale) ffn.expert_scale = expert_scale->data();
            if (clamped_swiglu) {
              ffn.activation = Activation::kClampedSwiglu;
              std::tie(ffn.alpha, ffn.limit) = *clamped_swiglu;
            }
            require_columns(x, experts.at(0).gate.cols);
            RouterRule rule{int(gate.size()), int(ids.shape(1)), true};
            std::vector<int32_t> active, offsets(gate.size() + 1), sorted_of_pair(size_t(ids.size()) + 1),
                pair_of_sorted(size_t(ids.size()) + 1);
            for (int32_t e = 0; e < rule.num_experts; ++e)
              if (std::find(ids.data(), ids.data() + ids.size(), e) != ids.data() + ids.size()) active.push_back(e);
            int32_t num_active = int32_t(active.size());
            active.resize(gate.size());
            Routing routing{const_cast<int32_t*>(ids.data()), const_cast<float*>(weights.data()), active.data(), num_active};
            DispatchPlan plan{offsets.data(), sorted_of_pair.data(), pair_of_sorted.data()};
            dispatch_pairs(routing, x.shape(0), rule, plan);
            Floats out = output(x.shape(0), x.shape(1), accumulate);
            b.combine(
                b.expert_ffn(activations(x), b.expert_table(experts), rule, ffn, routing, plan, out.mutable_data(), accumulate));
            return out;
          },
          py::arg("x"), py::arg("gate"), py::arg("up"), py::arg("down"), py::arg("ids"), py::arg("weights"),
          py::arg("biases") = py::none(), py::arg("clamped_swiglu") = py::none(), py::arg("scale_input") = false,
          py::arg("activation") = "silu", py::arg("expert_scale") = py::none(), py::arg("accumulate") = true)
      .def(
          "mlp",
          [](Backend& b, const Floats& x, const py::object& gate, const py::object& up, const py::object& down,
             const std::optional<std::vector<py::array>>& biases, const std::optional<py::array>& row_gate,
             const std::string& activation, bool accumulate, float scale, int64_t out_stride) {
            ExpertWeights w;
            w.gate = any_weight(gate);
            if (!up.is_none()) w.up = any_weight(up);
            w.down = any_weight(down);
            if (biases) {
              w.gate_bias = weight(biases->at(0));
              if (!up.is_none()) w.up_bias = weight(biases->at(1));
              w.down_bias = weight(biases->at(2));
            }
            require_columns(x, w.gate.cols);
            // The columns behind those of `down`, up to out_stride, are not the op's.
            Floats out = output(x.shape(0), out_stride ? out_stride : w.down.rows, accumulate);
            b.mlp(activations(x), w, weight(row_gate), out.mutable_data(), activation_of(activation), accumulate, scale,
                  out_stride);
            return out;
          },
          py::arg("x"), py::arg("gate"), py::arg("up"), py::arg("down"), py::arg("biases") = py::none(),
          py::arg("row_gate") = py::none(), py::arg("activation") = "silu", py::arg("accumulate") = true, py::arg("scale") = 1.0f,
          py::arg("out_stride") = 0);

  py::class_<PlacedWeight>(m, "PlacedWeight")
      .def_property_readonly("bytes", [](const PlacedWeight& w) { return w.view.bytes(); })
      .def("quantized_values", &quantized_values);
}

}  // namespace lynx_rt
