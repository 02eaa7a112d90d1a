// Engine, SamplingParams, StepOutput: the public C++ headers, one to one.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "base/error.h"
#include "bindings.h"
#include "checkpoint/safetensors.h"
#include "engine/simulation.h"
#include "lynx_rt/engine.h"
#include "model/decoder.h"

namespace py = pybind11;

namespace lynx_rt {

namespace {

py::list to_list(const std::vector<TokenLogprobs>& tokens) {
  py::list out;
  for (const TokenLogprobs& token : tokens) {
    py::list entries;
    for (const TokenLogprob& t : token) entries.append(py::make_tuple(t.token_id, t.logprob, t.rank));
    out.append(entries);
  }
  return out;
}

py::object to_object(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop: return py::str("stop");
    case FinishReason::kLength: return py::str("length");
    case FinishReason::kError: return py::str("error");
    case FinishReason::kNone: break;
  }
  return py::none();
}

// Takes the values over.
template <class T>
py::array_t<T> to_array(std::vector<T>&& values, const std::vector<int64_t>& shape) {
  auto* kept = new std::vector<T>(std::move(values));
  const py::capsule owner(kept, [](void* p) { delete static_cast<std::vector<T>*>(p); });
  return py::array_t<T>(shape, kept->data(), owner);
}

py::object to_object(const RoutedExperts& r) {
  if (r.num_layers == 0) return py::none();
  return to_array(std::vector<int16_t>(r.ids), {r.num_rows, r.num_layers, r.num_experts_per_tok});
}

py::dict to_dict(RouterLogits&& r) {
  const int64_t rows = int64_t(r.step.size()), layers = int64_t(r.layers.size());
  py::dict d;
  d["num_model_layers"] = r.num_model_layers;
  d["num_experts_per_tok"] = r.num_experts_per_tok;
  d["norm_topk_prob"] = r.norm_topk_prob;
  py::dict router;
  router["kind"] = r.router_kind;
  router["num_groups"] = r.num_groups;
  router["top_groups"] = r.top_groups;
  router["group_top2"] = r.group_top2;
  d["router"] = router;
  const int64_t biases = r.choice_bias.empty() ? 0 : r.num_experts;
  d["choice_bias"] = to_array(std::move(r.choice_bias), {layers, biases});
  d["layers"] = to_array(std::move(r.layers), {layers});
  d["scores"] = to_array(std::move(r.scores), {rows, layers, r.num_experts});
  d["routed_experts"] = to_array(std::move(r.routed_experts), {rows, layers, r.num_experts_per_tok});
  d["step"] = to_array(std::move(r.step), {rows});
  d["request"] = to_array(std::move(r.request), {rows});
  d["position"] = to_array(std::move(r.position), {rows});
  d["exact"] = to_array(std::move(r.exact), {rows});
  return d;
}

py::dict to_dict(const EngineStats::Layer& l) {
  py::dict d;
  d["layer"] = l.layer;
  d["steps"] = l.steps;
  d["rows"] = l.rows;
  d["union_before"] = l.union_before;
  d["active"] = l.active;
  d["remapped_pairs"] = l.remapped_pairs;
  d["guard_hits"] = l.guard_hits;
  d["retained_mass"] = l.retained_mass;
  return d;
}

py::dict to_dict(const EngineStats& s) {
  py::dict d;
#define LYNX_FIELD(name) d[#name] = s.name
  LYNX_FIELD(num_running);
  LYNX_FIELD(num_waiting);
  LYNX_FIELD(kv_blocks_used);
  LYNX_FIELD(kv_blocks_total);
  LYNX_FIELD(steps);
  LYNX_FIELD(decode_steps);
  LYNX_FIELD(prompt_tokens);
  LYNX_FIELD(cached_prompt_tokens);
  LYNX_FIELD(generation_tokens);
  LYNX_FIELD(preemptions);
  LYNX_FIELD(finished);
  LYNX_FIELD(aborted);
  LYNX_FIELD(step_seconds);
  LYNX_FIELD(decode_seconds);
  LYNX_FIELD(model_seconds);
  LYNX_FIELD(sampling_seconds);
  LYNX_FIELD(decode_rows);
  LYNX_FIELD(bytes_read);
#undef LYNX_FIELD
  py::list layers, ops;
  for (const EngineStats::Layer& l : s.layers) layers.append(to_dict(l));
  for (const EngineStats::Op& o : s.ops) {
    py::dict e;
    e["name"] = o.name;
    e["calls"] = o.calls;
    e["seconds"] = o.seconds;
    e["bytes"] = o.bytes;
    ops.append(e);
  }
  py::dict slo;
  slo["target_seconds"] = s.slo.target_seconds;
  slo["fixed_seconds"] = s.slo.fixed_seconds;
  slo["seconds_per_expert"] = s.slo.seconds_per_expert;
  slo["steps_over_target"] = s.slo.steps_over_target;
  slo["level"] = s.slo.level;
  slo["levels"] = s.slo.levels;
  d["slo"] = s.slo.levels.empty() ? py::object(py::none()) : slo;
  d["layers"] = layers;
  d["ops"] = ops;
  return d;
}

py::dict to_dict(const ModelInfo& i) {
  py::dict d;
#define LYNX_FIELD(name) d[#name] = i.name
  LYNX_FIELD(model_type);
  LYNX_FIELD(dtype);
  LYNX_FIELD(device);
  LYNX_FIELD(hidden_size);
  LYNX_FIELD(num_layers);
  LYNX_FIELD(num_heads);
  LYNX_FIELD(num_kv_heads);
  LYNX_FIELD(head_dim);
  LYNX_FIELD(vocab_size);
  LYNX_FIELD(num_experts);
  LYNX_FIELD(num_experts_per_tok);
  LYNX_FIELD(moe_intermediate_size);
  LYNX_FIELD(num_moe_layers);
  LYNX_FIELD(max_model_len);
  LYNX_FIELD(weight_bytes);
  LYNX_FIELD(kv_bytes);
  LYNX_FIELD(kv_bytes_per_token);
  LYNX_FIELD(workspace_bytes);
  LYNX_FIELD(eos_token_ids);
  LYNX_FIELD(warnings);
  LYNX_FIELD(copied_weight_bytes);
#undef LYNX_FIELD
  return d;
}

template <class T>
T cast_option(const std::string& name, py::handle value) {
  try {
    return py::cast<T>(value);
  } catch (const py::cast_error&) {
    const char* expected = std::is_same_v<T, bool> ? "a bool" : std::is_integral_v<T> ? "an integer in range" : "a string";
    invalid(name, "expected ", expected, ", got ", py::cast<std::string>(py::repr(value)));
  }
}

EngineOptions to_options(const py::kwargs& kwargs) {
  EngineOptions o;
  for (auto [key, value] : kwargs) {
    std::string k = py::cast<std::string>(key);
#define LYNX_OPTION(name)                             \
  if (k == #name) {                                   \
    o.name = cast_option<decltype(o.name)>(k, value); \
    continue;                                         \
  }
    LYNX_OPTION(device)
    LYNX_OPTION(load_format)
    LYNX_OPTION(dtype)
    LYNX_OPTION(quantization)
    LYNX_OPTION(quantization_cache)
    LYNX_OPTION(max_model_len)
    LYNX_OPTION(max_num_seqs)
    LYNX_OPTION(max_num_batched_tokens)
    LYNX_OPTION(max_num_queued_reqs)
    LYNX_OPTION(kv_cache_memory_bytes)
    LYNX_OPTION(block_size)
    LYNX_OPTION(enable_prefix_caching)
    LYNX_OPTION(enable_mixed_chunk)
    LYNX_OPTION(expert_selection)
    LYNX_OPTION(num_threads)
    LYNX_OPTION(isa)
    LYNX_OPTION(seed)
    LYNX_OPTION(disable_dependent_launch)
    LYNX_OPTION(enable_return_routed_experts)
    LYNX_OPTION(record_router_logits)
#undef LYNX_OPTION
    if (k == "on_load_progress") {
      if (value.is_none()) continue;
      // Called without the GIL, and freed with it: the engine keeps its options.
      std::shared_ptr<py::object> call(new py::object(py::reinterpret_borrow<py::object>(value)), [](py::object* p) {
        py::gil_scoped_acquire gil;
        delete p;
      });
      o.on_load_progress = [call](int64_t done, int64_t total) {
        py::gil_scoped_acquire gil;
        (*call)(done, total);
      };
      continue;
    }
    throw py::type_error("Engine: unknown option " + k);
  }
  return o;
}

template <class T>
using Array = py::array_t<T, py::array::c_style>;

template <class T>
Array<T> array_of(const py::dict& recorded, const char* key, const std::vector<int64_t>& shape) {
  const py::object value = recorded[key];
  if (!py::isinstance<Array<T>>(value)) invalid(key, "expected a contiguous array of another type");
  Array<T> array = py::reinterpret_borrow<Array<T>>(value);
  const std::vector<int64_t> found(array.shape(), array.shape() + array.ndim());
  bool same = found.size() == shape.size();
  for (size_t i = 0; same && i < shape.size(); ++i) same = shape[i] < 0 || shape[i] == found[i];
  if (!same) invalid(key, "expected ", shape, " (-1 = any), got ", found);
  return array;
}

py::dict simulate_recorded(const py::dict& recorded, const std::string& selection, const Array<int64_t>& order,
                           const Array<int64_t>& offsets) {
  const auto layers = array_of<int32_t>(recorded, "layers", {-1});
  const auto scores = array_of<float>(recorded, "scores", {-1, layers.size(), -1});
  const auto exact = array_of<uint8_t>(recorded, "exact", {scores.shape(0)});
  RecordedRows rows{};
  rows.scores = scores.data();
  rows.exact = exact.data();
  rows.num_rows = scores.shape(0);
  rows.num_model_layers = py::cast<int64_t>(recorded["num_model_layers"]);
  rows.layers = {layers.data(), size_t(layers.size())};
  rows.num_experts = scores.shape(2);
  rows.num_experts_per_tok = py::cast<int64_t>(recorded["num_experts_per_tok"]);
  rows.norm_topk_prob = py::cast<bool>(recorded["norm_topk_prob"]);
  const py::dict router = recorded["router"];
  rows.router.kind = parse_router_kind(py::cast<std::string>(router["kind"]));
  rows.router.num_groups = py::cast<int>(router["num_groups"]);
  rows.router.top_groups = py::cast<int>(router["top_groups"]);
  rows.router.group_top2 = py::cast<bool>(router["group_top2"]);
  const auto bias = array_of<float>(recorded, "choice_bias", {layers.size(), -1});
  if (bias.shape(1) != 0 && bias.shape(1) != rows.num_experts)
    invalid("choice_bias", "expected ", rows.num_experts, " experts or none, got ", bias.shape(1));
  if (bias.size() > 0) rows.choice_bias = bias.data();
  Array<int16_t> ids({int64_t(order.size()), int64_t(layers.size()), rows.num_experts_per_tok});
  const std::span<const int64_t> order_span(order.data(), size_t(order.size())),
      offsets_span(offsets.data(), size_t(offsets.size()));
  int16_t* const to = ids.mutable_data();
  std::vector<EngineStats::Layer> sums;
  {
    py::gil_scoped_release nogil;
    sums = simulate(rows, selection, order_span, offsets_span, to);
  }
  py::list list;
  for (const EngineStats::Layer& l : sums) list.append(to_dict(l));
  py::dict d;
  d["layers"] = list;
  d["routed_experts"] = ids;
  return d;
}

}  // namespace

void register_engine(py::module_& m) {
  py::class_<SamplingParams>(m, "SamplingParams")
      .def(py::init<>())
      .def_readwrite("temperature", &SamplingParams::temperature)
      .def_readwrite("top_p", &SamplingParams::top_p)
      .def_readwrite("top_k", &SamplingParams::top_k)
      .def_readwrite("min_p", &SamplingParams::min_p)
      .def_readwrite("presence_penalty", &SamplingParams::presence_penalty)
      .def_readwrite("frequency_penalty", &SamplingParams::frequency_penalty)
      .def_readwrite("repetition_penalty", &SamplingParams::repetition_penalty)
      .def_readwrite("seed", &SamplingParams::seed)
      .def_readwrite("max_tokens", &SamplingParams::max_tokens)
      .def_readwrite("min_tokens", &SamplingParams::min_tokens)
      .def_readwrite("stop_token_ids", &SamplingParams::stop_token_ids)
      .def_readwrite("ignore_eos", &SamplingParams::ignore_eos)
      .def_readwrite("logprobs", &SamplingParams::logprobs)
      .def_readwrite("prompt_logprobs", &SamplingParams::prompt_logprobs)
      .def_readwrite("logit_bias", &SamplingParams::logit_bias)
      .def_readwrite("allowed_token_ids", &SamplingParams::allowed_token_ids)
      .def_readwrite("forced_token_ids", &SamplingParams::forced_token_ids)
      .def_readwrite("bad_words", &SamplingParams::bad_words)
      .def_readwrite("exact", &SamplingParams::exact);

  py::class_<StepOutput>(m, "StepOutput")
      .def_readonly("request_id", &StepOutput::request_id)
      .def_readonly("token_ids", &StepOutput::token_ids)
      .def_property_readonly("logprobs", [](const StepOutput& o) { return to_list(o.logprobs); })
      .def_property_readonly("prompt_logprobs", [](const StepOutput& o) { return to_list(o.prompt_logprobs); })
      .def_property_readonly("routed_experts", [](const StepOutput& o) { return to_object(o.routed_experts); })
      .def_property_readonly("finish_reason", [](const StepOutput& o) { return to_object(o.finish_reason); })
      .def_property_readonly(
          "stop_token_id",
          [](const StepOutput& o) { return o.stop_token_id < 0 ? py::object(py::none()) : py::int_(o.stop_token_id); })
      .def_readonly("error", &StepOutput::error)
      .def_readonly("num_cached_tokens", &StepOutput::num_cached_tokens)
      .def_readonly("num_preemptions", &StepOutput::num_preemptions)
      .def_readonly("arrival_time", &StepOutput::arrival_time)
      .def_readonly("first_scheduled_time", &StepOutput::first_scheduled_time)
      .def_readonly("first_token_time", &StepOutput::first_token_time)
      .def_readonly("finish_time", &StepOutput::finish_time);

  using release = py::call_guard<py::gil_scoped_release>;
  py::class_<Engine>(m, "Engine")
      .def(py::init([](const std::string& path, const py::kwargs& kwargs) {
             EngineOptions options = to_options(kwargs);
             py::gil_scoped_release nogil;
             return Engine::create(path, options);
           }),
           py::arg("path"))
      .def("add_request", &Engine::add_request, py::arg("prompt_token_ids"), py::arg("params"), release())
      .def("step", &Engine::step, release())
      .def("abort", &Engine::abort, py::arg("request_id"), release())
      .def("has_unfinished", &Engine::has_unfinished, release())
      .def("set_expert_selection", &Engine::set_expert_selection, py::arg("selection"), release())
      .def("expert_selection", &Engine::expert_selection, release())
      .def("stats",
           [](const Engine& e) {
             EngineStats s;
             {
               py::gil_scoped_release nogil;
               s = e.stats();
             }
             return to_dict(s);
           })
      .def("reset_stats", &Engine::reset_stats, release())
      .def("model_info",
           [](const Engine& e) {
             ModelInfo i;
             {
               py::gil_scoped_release nogil;
               i = e.model_info();
             }
             return to_dict(i);
           })
      .def("check_integrity", &Engine::check_integrity, release())
      .def(
          "forward",
          [](Engine& e, const std::vector<int32_t>& ids, int64_t chunk) {
            std::vector<float> logits;
            {
              py::gil_scoped_release nogil;
              logits = e.forward(ids, chunk);
            }
            py::array_t<float> out({int64_t(ids.size()), int64_t(logits.size() / ids.size())});
            std::copy(logits.begin(), logits.end(), out.mutable_data());
            return out;
          },
          py::arg("token_ids"), py::arg("chunk") = 0)
      .def("take_router_logits",
           [](Engine& e) {
             RouterLogits logits;
             {
               py::gil_scoped_release nogil;
               logits = e.take_router_logits();
             }
             return to_dict(std::move(logits));
           })
      .def(
          "compare_experts",
          [](Engine& e, const std::vector<int32_t>& ids, const std::string& metric) {
            if (metric != "frobenius" && metric != "cosine")
              invalid("metric", "expected \"frobenius\" or \"cosine\", got \"", metric, "\"");
            ExpertComparison c;
            {
              py::gil_scoped_release nogil;
              c = e.compare_experts(ids, metric == "cosine" ? ExpertMetric::kCosine : ExpertMetric::kFrobenius);
            }
            py::dict d;
            d["num_tokens"] = c.num_tokens;
            d["sums"] = to_array(std::move(c.sums), {c.num_layers, c.num_experts, c.num_experts});
            d["usage"] = to_array(std::move(c.usage), {c.num_layers, c.num_experts});
            return d;
          },
          py::arg("token_ids"), py::arg("metric") = "frobenius")
      .def("close", &Engine::close, release());

  m.def("simulate", &simulate_recorded,
        "An expert selection on recorded router logits: dict(layers, routed_experts [order.size, L, k]). `recorded` is a dict as "
        "of "
        "Engine.take_router_logits(); step s has rows order[offsets[s]:offsets[s + 1]] of it. See csrc/engine/simulation.h.",
        py::arg("recorded"), py::arg("selection"), py::arg("order").noconvert(), py::arg("offsets").noconvert());
  m.def("supported_model_types", &supported_model_types);
}

}  // namespace lynx_rt
