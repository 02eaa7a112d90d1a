// Single backend ops on NumPy arrays, for tests and benches. Arrays of weights are float32, float16, or uint16 holding bf16.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "backend/backend.h"
#include "backend/cpu/dispatch.h"
#include "backend/cpu/quantize.h"
#include "base/error.h"
#include "bindings.h"

namespace py = pybind11;

namespace lynx_rt {

namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Ints = py::array_t<int32_t, py::array::c_style>;

DType dtype_of(const std::string& name) {
  for (DType t : {DType::kF32, DType::kBF16, DType::kF16})
    if (name == dtype_name(t)) return t;
  invalid("dtype", "expected float32, bfloat16 or float16, got \"", name, "\"");
}

WeightView weight(const py::array& a) {
  if (!(a.flags() & py::array::c_style) || a.ndim() < 1 || a.ndim() > 2)
    invalid("weight", "expected a contiguous array of 1 or 2 dimensions");
  DType t = a.dtype().kind() == 'u' ? DType::kBF16 : a.itemsize() == 2 ? DType::kF16 : DType::kF32;
  if (a.itemsize() != dtype_size(t)) invalid("weight", "expected float32, float16 or uint16 (bf16 bits)");
  return {a.data(), t, a.ndim() == 2 ? a.shape(0) : 1, a.shape(a.ndim() - 1)};
}

// A weight as a backend placed it, and what keeps its memory alive.
struct PlacedWeight {
  WeightView view;
  py::object backend, array;
};

WeightView weight(const py::object& w) {
  if (py::isinstance<PlacedWeight>(w)) return w.cast<PlacedWeight&>().view;
  return weight(w.cast<py::array>());
}

// Of a quantised weight: the integers [N, K] and the scales [N, groups of K].
py::tuple quantized_values(const PlacedWeight& w) {
  py::array_t<int8_t> values({w.view.rows, w.view.cols});
  Floats scales({w.view.rows, quantized_groups(w.view)});
  read_quantized(w.view, values.mutable_data(), scales.mutable_data());
  return py::make_tuple(values, scales);
}

void require_columns(const Floats& x, int64_t columns) {
  if (x.ndim() != 2 || x.shape(1) != columns) invalid("x", "expected [T, ", columns, "]");
}

// A KV cache of one layer on NumPy-visible memory, and the two ops that use it.
class PagedCache {
 public:
  PagedCache(Backend& backend, int64_t num_blocks, int64_t block_size, int64_t num_kv_heads, int64_t head_dim)
      : backend_(backend), bytes_(num_blocks * block_size * num_kv_heads * head_dim * dtype_size(backend.compute_dtype())) {
    view_ = {backend.allocate(bytes_, "cache"),
             backend.allocate(bytes_, "cache"),
             backend.compute_dtype(),
             num_blocks,
             block_size,
             num_kv_heads,
             head_dim};
  }
  ~PagedCache() {
    backend_.release(view_.k, bytes_);
    backend_.release(view_.v, bytes_);
  }
  PagedCache(const PagedCache&) = delete;

  // qkv_post, then attention, of consecutive rows per sequence. qkv [T, (A + 2 G) * D], positions [T], query_start [S + 1],
  // block_tables [S, max_blocks], cos and sin [positions, D / 2] -> [T, A * D].
  Floats attend(Floats qkv, int64_t num_heads, std::optional<py::array> q_norm, std::optional<py::array> k_norm, float eps,
                const Floats& cos, const Floats& sin, const Ints& positions, const Ints& query_start, const Ints& block_tables) {
    int64_t d = view_.head_dim, rows = positions.size();
    require_columns(qkv, (num_heads + 2 * view_.num_kv_heads) * d);
    Floats work({rows, qkv.shape(1)});
    std::copy(qkv.data(), qkv.data() + qkv.size(), work.mutable_data());
    BatchView b;
    b.num_rows = rows;
    b.num_seqs = query_start.size() - 1;
    b.positions = positions.data();
    b.query_start = query_start.data();
    b.block_tables = block_tables.data();
    b.max_blocks = block_tables.shape(1);
    std::vector<int64_t> slots;
    for (int64_t s = 0; s < b.num_seqs; ++s)
      for (int32_t t = query_start.at(s); t < query_start.at(s + 1); ++t)
        slots.push_back(block_tables.at(s, positions.at(t) / view_.block_size) * view_.block_size +
                        positions.at(t) % view_.block_size);
    b.slots = slots.data();
    QkvPostArgs args{
        work.mutable_data(),     num_heads, q_norm ? weight(*q_norm) : WeightView{}, k_norm ? weight(*k_norm) : WeightView{}, eps,
        {cos.data(), sin.data()}};
    b = backend_.begin_step(b);
    backend_.qkv_post(args, b, view_);
    Floats out({rows, num_heads * d});
    backend_.attention(work.data(), work.shape(1), num_heads, 1.0f / std::sqrt(float(d)), b, view_, out.mutable_data());
    return out;
  }

 private:
  Backend& backend_;
  int64_t bytes_;
  KvCacheView view_;
};

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
             ExpertWeights one{weight(w), {}, {}};  // not place(), by which "int4" is int8
             self.cast<Backend&>().place_experts({&one, 1});
             return PlacedWeight{one.gate, self, w};
           })
      .def("description", &Backend::description)
      .def("embed",
           [](Backend& b, const py::array& table, const Ints& ids) {
             WeightView w = weight(table);
             Floats out({int64_t(ids.size()), w.cols});
             b.embed(w, ids.data(), ids.size(), out.mutable_data());
             return out;
           })
      .def("rmsnorm",
           [](Backend& b, const Floats& x, const py::array& w, float eps) {
             require_columns(x, weight(w).cols);
             Floats out({x.shape(0), x.shape(1)});
             b.rmsnorm(x.data(), weight(w), eps, x.shape(0), out.mutable_data());
             return out;
           })
      .def(
          "linear",
          [](Backend& b, const Floats& x, const py::object& w, std::optional<py::array> bias, std::optional<Floats> add_to) {
            LinearPart part{weight(w), bias ? weight(*bias) : WeightView{}, 0};
            require_columns(x, part.weight.cols);
            Floats out({x.shape(0), part.weight.rows});
            if (add_to) std::copy(add_to->data(), add_to->data() + add_to->size(), out.mutable_data());
            b.linear(x.data(), x.shape(0), {&part, 1}, add_to.has_value(), out.mutable_data(), part.weight.rows);
            return out;
          },
          py::arg("x"), py::arg("weight"), py::arg("bias") = py::none(), py::arg("add_to") = py::none())
      .def("router",
           [](Backend& b, const Floats& x, const py::array& w) {
             require_columns(x, weight(w).cols);
             Floats out({x.shape(0), weight(w).rows});
             b.router(x.data(), weight(w), x.shape(0), out.mutable_data());
             return out;
           })
      .def("expert_ffn",
           [](Backend& b, const Floats& x, const std::vector<py::object>& gate, const std::vector<py::object>& up,
              const std::vector<py::object>& down, const Ints& ids, const Floats& weights) {
             // routing ids [T, k] with -1 = none, weights [T, k]; returns [T, H]
             std::vector<ExpertWeights> experts;
             for (size_t e = 0; e < gate.size(); ++e) experts.push_back({weight(gate[e]), weight(up[e]), weight(down[e])});
             require_columns(x, experts.at(0).gate.cols);
             RouterRule rule{int(gate.size()), int(ids.shape(1)), true};
             std::vector<int32_t> active, offsets(gate.size() + 1), row_of_pair(size_t(ids.size()) + 1),
                 pair_of_row(size_t(ids.size()) + 1);
             for (int32_t e = 0; e < rule.num_experts; ++e)
               if (std::find(ids.data(), ids.data() + ids.size(), e) != ids.data() + ids.size()) active.push_back(e);
             int32_t num_active = int32_t(active.size());
             active.resize(gate.size());
             Routing routing{const_cast<int32_t*>(ids.data()), const_cast<float*>(weights.data()), active.data(), num_active};
             DispatchPlan plan{offsets.data(), row_of_pair.data(), pair_of_row.data()};
             dispatch_pairs(routing, x.shape(0), rule, plan);
             Floats out({x.shape(0), x.shape(1)});
             std::fill_n(out.mutable_data(), out.size(), 0.0f);
             b.expert_ffn(x.data(), x.shape(0), experts, rule, routing, plan, out.mutable_data());
             return out;
           })
      .def("mlp", [](Backend& b, const Floats& x, const py::object& gate, const py::object& up, const py::object& down) {
        ExpertWeights w{weight(gate), weight(up), weight(down)};
        require_columns(x, w.gate.cols);
        Floats out({x.shape(0), x.shape(1)});
        std::fill_n(out.mutable_data(), out.size(), 0.0f);
        b.mlp(x.data(), x.shape(0), w, out.mutable_data());
        return out;
      });

  py::class_<PlacedWeight>(m, "PlacedWeight")
      .def_property_readonly("bytes", [](const PlacedWeight& w) { return w.view.bytes(); })
      .def("quantized_values", &quantized_values);

  py::class_<PagedCache>(m, "PagedCache")
      .def(py::init<Backend&, int64_t, int64_t, int64_t, int64_t>(), py::keep_alive<1, 2>(), py::arg("backend"),
           py::arg("num_blocks"), py::arg("block_size"), py::arg("num_kv_heads"), py::arg("head_dim"))
      .def("attend", &PagedCache::attend);
}

}  // namespace lynx_rt
