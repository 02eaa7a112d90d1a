// Binds the attention ops on NumPy arrays, for tests and benches: a paged KV cache of one layer, and the ops that work on it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "arrays.h"
#include "bindings.h"

namespace lynx_rt {

namespace {

QkNorm qk_norm(const std::string& name) {
  if (name == "none") return QkNorm::kNone;
  if (name == "head") return QkNorm::kHead;
  if (name == "width") return QkNorm::kWidth;
  if (name == "head_after_rope") return QkNorm::kHeadAfterRope;
  if (name == "unit_after_rope") return QkNorm::kUnitAfterRope;
  invalid("norm", "expected none, head, width, head_after_rope or unit_after_rope, got \"", name, "\"");
}

// The rows of a step: positions [T], query_start [S + 1], block_tables [S, max_blocks]; each sequence has consecutive rows.
struct Rows {
  Rows(const Ints& positions, const Ints& query_start, const Ints& block_tables, int64_t block_size) {
    batch.num_rows = positions.size();
    batch.num_seqs = query_start.size() - 1;
    batch.positions = positions.data();
    batch.query_start = query_start.data();
    batch.block_tables = block_tables.data();
    batch.max_blocks = block_tables.shape(1);
    for (int64_t s = 0; s < batch.num_seqs; ++s)
      for (int32_t t = query_start.at(s); t < query_start.at(s + 1); ++t)
        slots.push_back(block_tables.at(s, positions.at(t) / block_size) * block_size + positions.at(t) % block_size);
    batch.slots = slots.data();
  }
  BatchView batch;
  std::vector<int64_t> slots;
};

// A paged KV cache of one layer. v_head_dim > 0 makes it a cache of multi-head latent attention, whose V is the first columns of
// K.
class PagedCache {
 public:
  PagedCache(Backend& backend, int64_t num_blocks, int64_t block_size, int64_t num_kv_heads, int64_t head_dim, int64_t v_head_dim)
      : backend_(backend), bytes_(num_blocks * block_size * num_kv_heads * head_dim * dtype_size(backend.compute_dtype())) {
    view_ = {backend.allocate(bytes_, "cache"),
             v_head_dim > 0 ? nullptr : backend.allocate(bytes_, "cache"),
             backend.compute_dtype(),
             num_blocks,
             block_size,
             num_kv_heads,
             head_dim,
             v_head_dim};
  }
  ~PagedCache() {
    backend_.release(view_.k, bytes_);
    if (view_.v) backend_.release(view_.v, bytes_);
  }
  PagedCache(const PagedCache&) = delete;

  // Runs qkv_post, then attention. qkv [T, (A + 2 G) * D], with `gated` [T, (2 A + 2 G) * D], cos and sin [positions, rotated columns / 2]
  // -> [T, A * D].
  Floats attend(const Floats& qkv, int64_t num_heads, const std::optional<py::array>& q_norm,
                const std::optional<py::array>& k_norm, float eps, const Floats& cos, const Floats& sin, const Ints& positions,
                const Ints& query_start, const Ints& block_tables, const std::optional<std::string>& norm, bool interleaved,
                float clip, std::pair<float, float> temperature, int64_t window, int64_t chunk,
                const std::optional<py::array>& sinks, std::optional<float> scale, bool v_norm, bool v_from_k, bool gated,
                bool causal, const std::optional<Ints>& rope_rows) {
    const int64_t d = view_.head_dim;
    require_columns(qkv, ((gated ? 2 : 1) * num_heads + 2 * view_.num_kv_heads) * d);
    Floats work({qkv.shape(0), qkv.shape(1)});
    std::copy(qkv.data(), qkv.data() + qkv.size(), work.mutable_data());
    Rows rows(positions, query_start, block_tables, view_.block_size);
    if (rope_rows) rows.batch.rope_rows = rope_rows->data();
    QkvPostArgs post{};
    post.qkv = work.mutable_data();
    post.num_heads = num_heads;
    post.norm = norm ? qk_norm(*norm) : q_norm ? QkNorm::kHead : QkNorm::kNone;
    post.q_norm = weight(q_norm);
    post.k_norm = weight(k_norm);
    post.eps = eps;
    post.rope = {cos.data(), sin.data(), 2 * cos.shape(1), interleaved};
    post.v_norm = v_norm;
    post.v_from_k = v_from_k;
    post.clip = clip;
    std::tie(post.temperature_floor, post.temperature_scale) = temperature;
    post.gated = gated;
    const BatchView b = backend_.begin_step(rows.batch);
    backend_.qkv_post(post, b, view_);
    return attention({work.data(), work.shape(1), num_heads, scale.value_or(1.0f / std::sqrt(float(d))), window, chunk,
                      weight(sinks), gated, causal},
                     b);
  }

  // Runs mla_post, then attention. q [T, A * (nope + R)], latent_q [T, A * (L + R)] with the heads' first L columns, kv [T, L +
  // R], cos and sin [positions, R / 2] -> [T, A * L].
  Floats attend_latent(const Floats& q, const Floats& latent_q, const Floats& kv, int64_t num_heads, const py::array& kv_norm,
                       float eps, const Floats& cos, const Floats& sin, const Ints& positions, const Ints& query_start,
                       const Ints& block_tables, bool interleaved, float scale) {
    const int64_t rotated = 2 * cos.shape(1);
    require_columns(latent_q, num_heads * view_.head_dim);
    require_columns(kv, view_.head_dim);
    Floats work({latent_q.shape(0), latent_q.shape(1)}), consumed({kv.shape(0), kv.shape(1)});
    std::copy(latent_q.data(), latent_q.data() + latent_q.size(), work.mutable_data());
    std::copy(kv.data(), kv.data() + kv.size(), consumed.mutable_data());
    const Rows rows(positions, query_start, block_tables, view_.block_size);
    const MlaPostArgs post{q.data(),
                           consumed.mutable_data(),
                           num_heads,
                           q.shape(1) / num_heads - rotated,
                           weight(kv_norm),
                           eps,
                           {cos.data(), sin.data(), rotated, interleaved},
                           work.mutable_data()};
    const BatchView b = backend_.begin_step(rows.batch);
    backend_.mla_post(post, b, view_);
    return attention({work.data(), work.shape(1), num_heads, scale, 0, 0, {}}, b);
  }

 private:
  Floats attention(const AttentionArgs& args, const BatchView& batch) {
    Activations out(backend_, batch.num_rows, args.num_heads * view_.v_columns(), "test");
    backend_.attention(args, batch, view_, out);
    return to_array(out);
  }

  Backend& backend_;
  int64_t bytes_;
  KvCacheView view_;
};

}  // namespace

void register_attention(py::module_& m) {
  py::class_<PagedCache>(m, "PagedCache")
      .def(py::init<Backend&, int64_t, int64_t, int64_t, int64_t, int64_t>(), py::keep_alive<1, 2>(), py::arg("backend"),
           py::arg("num_blocks"), py::arg("block_size"), py::arg("num_kv_heads"), py::arg("head_dim"), py::arg("v_head_dim") = 0)
      .def("attend", &PagedCache::attend, py::arg("qkv"), py::arg("num_heads"), py::arg("q_norm"), py::arg("k_norm"),
           py::arg("eps"), py::arg("cos"), py::arg("sin"), py::arg("positions"), py::arg("query_start"), py::arg("block_tables"),
           py::arg("norm") = py::none(), py::arg("interleaved") = false, py::arg("clip") = 0.0f,
           py::arg("temperature") = std::pair<float, float>(0, 0), py::arg("window") = 0, py::arg("chunk") = 0,
           py::arg("sinks") = py::none(), py::arg("scale") = py::none(), py::arg("v_norm") = false, py::arg("v_from_k") = false,
           py::arg("gated") = false, py::arg("causal") = true, py::arg("rope_rows") = py::none())
      .def("attend_latent", &PagedCache::attend_latent, py::arg("q"), py::arg("latent_q"), py::arg("kv"), py::arg("num_heads"),
           py::arg("kv_norm"), py::arg("eps"), py::arg("cos"), py::arg("sin"), py::arg("positions"), py::arg("query_start"),
           py::arg("block_tables"), py::arg("interleaved") = false, py::arg("scale") = 1.0f);
}

}  // namespace lynx_rt
