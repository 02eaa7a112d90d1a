// Binds the public C++ headers one to one: Engine, SamplingParams, StepOutput.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>

#include "backend/sampling.h"
#include "base/error.h"
#include "bindings.h"
#include "engine/public_fields.h"
#include "gil.h"
#include "lynx_rt/engine.h"
#include "research/simulation.h"
#include "research/tier_simulation.h"
#include "routing/selection_text.h"
#include "to_python.h"

namespace py = pybind11;

namespace lynx_rt {

std::function<void(int64_t, int64_t)> progress_callback(py::handle callable) {
  if (callable.is_none()) return {};
  // The callback may be called and freed with or without the GIL.
  std::shared_ptr<py::object> call(new py::object(py::reinterpret_borrow<py::object>(callable)), [](py::object* p) {
    AcquireGil gil;
    delete p;
  });
  return [call](int64_t done, int64_t total) {
    AcquireGil gil;
    PyObject* result = nullptr;
    hold_if_ended(
        [&] { result = PyObject_CallFunction(call->ptr(), "LL", static_cast<long long>(done), static_cast<long long>(total)); });
    if (!result) throw py::error_already_set();
    Py_DECREF(result);
  };
}

namespace {

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
#define LYNX_RT_FIELD(name)                           \
  if (k == #name) {                                   \
    o.name = cast_option<decltype(o.name)>(k, value); \
    continue;                                         \
  }
    LYNX_RT_OPTION_FIELDS(LYNX_RT_FIELD)
    LYNX_RT_OPTION_FIELDS_UNLIKE_C(LYNX_RT_FIELD)
#undef LYNX_RT_FIELD
    if (k == "on_load_progress") {
      o.on_load_progress = progress_callback(value);
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

// Converts a list of dict(position, grid_height, grid_width, patches, digest); None = none.
std::vector<ImageInput> to_images(const py::object& images) {
  std::vector<ImageInput> out;
  if (images.is_none()) return out;
  import_numpy();
  for (const py::handle given : images) {
    if (!py::isinstance<py::dict>(given)) invalid("images", "expected dicts, got ", py::cast<std::string>(py::repr(given)));
    const py::dict d = py::reinterpret_borrow<py::dict>(given);
    for (const char* key : {"position", "grid_height", "grid_width", "patches", "digest"})
      if (!d.contains(key)) invalid("images", "expected a dict with the key ", key);
    if (!py::isinstance<Array<float>>(d["patches"])) invalid("images", "patches: expected a contiguous array of float32");
    if (!py::isinstance<py::bytes>(d["digest"])) invalid("images", "digest: expected bytes");
    const auto patches = py::reinterpret_borrow<Array<float>>(d["patches"]);
    ImageInput& image = out.emplace_back();
    image.position = cast_option<int64_t>("position", d["position"]);
    image.grid_height = cast_option<int32_t>("grid_height", d["grid_height"]);
    image.grid_width = cast_option<int32_t>("grid_width", d["grid_width"]);
    image.patches.assign(patches.data(), patches.data() + patches.size());
    image.digest = py::cast<std::string>(d["digest"]);
  }
  return out;
}

// A token mask that Python writes between steps. The engine's side holds the words without the Python object, so that it needs no
// GIL.
class MaskBuffer {
 public:
  explicit MaskBuffer(int64_t vocab_size) {
    if (vocab_size < 1) invalid("vocab_size", "expected at least 1, got ", vocab_size);
    words_ = std::make_shared<std::vector<int32_t>>(size_t(token_mask_words(vocab_size)));
  }
  std::vector<int32_t>& words() { return *words_; }
  TokenMask token_mask() const {
    return [from = words_](std::span<const int32_t>, std::span<int32_t> to) {
      if (from->size() != to.size()) invalid("token_mask", "expected ", to.size(), " words, got ", from->size());
      std::copy(from->begin(), from->end(), to.begin());
      return true;
    };
  }

 private:
  std::shared_ptr<std::vector<int32_t>> words_;
};

// Rows of a dict as of Engine.take_router_logits(), whose arrays it keeps.
struct HeldRows {
  explicit HeldRows(const py::dict& recorded)
      : layers(array_of<int32_t>(recorded, "layers", {-1})),
        scores(array_of<float>(recorded, "scores", {-1, layers.size(), -1})),
        exact(array_of<uint8_t>(recorded, "exact", {scores.shape(0)})),
        bias(array_of<float>(recorded, "choice_bias", {layers.size(), -1})) {
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
    if (bias.shape(1) != 0 && bias.shape(1) != rows.num_experts)
      invalid("choice_bias", "expected ", rows.num_experts, " experts or none, got ", bias.shape(1));
    if (bias.size() > 0) rows.choice_bias = bias.data();
  }

  const Array<int32_t> layers;
  const Array<float> scores;
  const Array<uint8_t> exact;
  const Array<float> bias;
  RecordedRows rows{};
};

std::span<const int64_t> span_of(const Array<int64_t>& array) { return {array.data(), size_t(array.size())}; }

py::dict simulate_recorded(const py::dict& recorded, const std::string& selection, const Array<int64_t>& order,
                           const Array<int64_t>& offsets) {
  const HeldRows held(recorded);
  const RecordedRows& rows = held.rows;
  Array<int16_t> ids({int64_t(order.size()), int64_t(rows.layers.size()), rows.num_experts_per_tok});
  const std::span<const int64_t> order_span = span_of(order), offsets_span = span_of(offsets);
  int16_t* const to = ids.mutable_data();
  std::vector<EngineStats::Layer> sums;
  {
    ReleaseGil nogil;
    sums = simulate(rows, selection, order_span, offsets_span, to);
  }
  py::list list;
  for (const EngineStats::Layer& l : sums) list.append(to_dict(l));
  py::dict d;
  d["layers"] = list;
  d["routed_experts"] = ids;
  return d;
}

py::dict simulate_tier_recorded(const py::dict& recorded, const std::string& selection, const Array<int64_t>& order,
                                const Array<int64_t>& offsets, const std::string& policy, double residents,
                                const ExpertHistory& lists, double layer_seconds, double expert_seconds, double read_seconds,
                                const py::object& guesses, int64_t num_guesses, int64_t distance, const py::object& seeds) {
  const HeldRows held(recorded);
  TierSetup setup;
  setup.plec = policy == "plec";
  if (!setup.plec) setup.rule = parse_residency(policy);
  setup.residents = residents;
  setup.lists = lists;
  setup.times = {layer_seconds, expert_seconds, read_seconds};
  const int64_t layers = held.layers.size();
  Array<float> held_arrays[2];
  const auto of_rows = [&](const char* name, const py::object& given, Array<float>& array) -> const float* {
    if (given.is_none()) return nullptr;
    py::dict d;
    d[name] = given;
    array = array_of<float>(d, name, {held.rows.num_rows, layers, held.rows.num_experts});
    return array.data();
  };
  setup.guesses = of_rows("guesses", guesses, held_arrays[0]);
  setup.seeds = of_rows("seeds", seeds, held_arrays[1]);
  setup.num_guesses = num_guesses;
  setup.distance = distance;
  const std::span<const int64_t> order_span = span_of(order), offsets_span = span_of(offsets);
  TierSimulation found = [&] {
    ReleaseGil nogil;
    return simulate_tier(held.rows, selection, order_span, offsets_span, setup);
  }();
  const int64_t steps = int64_t(found.seconds.size());
  py::dict d;
  const auto add_counts = [&](const char* name, std::vector<int32_t>& counts) {
    d[name] = to_array(std::move(counts), {steps, layers});
  };
  const auto add_sums = [&](const char* name, std::vector<double>& sums) { d[name] = to_array(std::move(sums), {steps}); };
  add_counts("used", found.used);
  add_counts("misses", found.misses);
  add_counts("reads", found.reads);
  add_counts("guessed", found.guessed);
  add_counts("guessed_used", found.guessed_used);
  add_counts("ahead", found.ahead);
  add_counts("needed", found.needed);
  add_counts("in_time", found.in_time);
  add_sums("seconds", found.seconds);
  add_sums("wait", found.wait);
  add_sums("wasted", found.wasted);
  add_sums("disk", found.disk);
  add_sums("retained_mass", found.retained_mass);
  return d;
}

}  // namespace

void register_engine(py::module_& m) {
  py::class_<SamplingParams> params(m, "SamplingParams");
  params.def(py::init<>());
#define LYNX_RT_FIELD(name) params.def_readwrite(#name, &SamplingParams::name);
  LYNX_RT_SAMPLING_FIELDS(LYNX_RT_FIELD)
  LYNX_RT_SAMPLING_ID_LISTS(LYNX_RT_FIELD)
  LYNX_RT_SAMPLING_FIELDS_UNLIKE_C(LYNX_RT_FIELD)
#undef LYNX_RT_FIELD

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
      .def_readonly("num_selected_rows", &StepOutput::num_selected_rows)
      .def_readonly("num_decode_steps", &StepOutput::num_decode_steps)
      .def_readonly("num_experts_read", &StepOutput::num_experts_read)
      .def_readonly("scheduler_time", &StepOutput::scheduler_time)
      .def_readonly("num_computed_prompt_tokens", &StepOutput::num_computed_prompt_tokens)
      .def_readonly("arrival_time", &StepOutput::arrival_time)
      .def_readonly("first_scheduled_time", &StepOutput::first_scheduled_time)
      .def_readonly("first_token_time", &StepOutput::first_token_time)
      .def_readonly("finish_time", &StepOutput::finish_time);

  py::class_<MaskBuffer>(m, "TokenMask")
      .def(py::init<int64_t>(), py::arg("vocab_size"))
      .def_property_readonly("words", [](const py::object& self) {
        import_numpy();
        std::vector<int32_t>& words = self.cast<MaskBuffer&>().words();
        return py::array_t<int32_t>(int64_t(words.size()), words.data(), self);
      });

  using release = py::call_guard<ReleaseGil>;
  py::class_<Engine>(m, "Engine")
      .def(py::init([](const std::string& path, const py::kwargs& kwargs) {
             EngineOptions options = to_options(kwargs);
             if (options.enable_return_routed_experts || options.record_router_logits) import_numpy();
             ReleaseGil nogil;
             return Engine::create(path, options);
           }),
           py::arg("path"))
      .def(
          "add_request",
          [](Engine& e, std::vector<int32_t> prompt, const SamplingParams& p, const std::optional<MaskBuffer>& mask,
             const py::object& images) {
            std::vector<ImageInput> converted = to_images(images);
            ReleaseGil nogil;
            return e.add_request(std::move(prompt), p, mask ? mask->token_mask() : nullptr, std::move(converted));
          },
          "images: None, or a list of dict(position, grid_height, grid_width, patches [patches, columns] float32, digest bytes).",
          py::arg("prompt_token_ids"), py::arg("params"), py::arg("token_mask") = py::none(), py::arg("images") = py::none())
      .def("step", py::overload_cast<>(&Engine::step), release())
      .def("abort", &Engine::abort, py::arg("request_id"), release())
      .def("has_unfinished", &Engine::has_unfinished, release())
      .def("set_expert_selection", &Engine::set_expert_selection, py::arg("selection"), release())
      .def("expert_selection", &Engine::expert_selection, release())
      .def_property_readonly("last_step_time", &Engine::last_step_time)
      .def_property_readonly("step_start_time", &Engine::step_start_time)
      .def("stats",
           [](const Engine& e) {
             EngineStats s;
             {
               ReleaseGil nogil;
               s = e.stats();
             }
             return to_dict(s);
           })
      .def("step_sums",
           [](const Engine& e) {
             EngineStats s;
             std::string selection;
             int64_t layer_steps = 0, active = 0;
             {
               ReleaseGil nogil;
               s = e.stats();
               selection = e.expert_selection();
               for (const EngineStats::Layer& layer : s.layers) {
                 layer_steps += layer.steps;
                 active += layer.active;
               }
             }
             return py::make_tuple(s.steps, s.decode_steps, s.decode_rows, s.prompt_tokens + s.generation_tokens, s.step_seconds,
                                   layer_steps, active, selection);
           })
      .def("expert_counts",
           [](const Engine& e) {
             import_numpy();
             ExpertCounts counts;
             ModelInfo i;
             {
               ReleaseGil nogil;
               counts = e.expert_counts();
               i = e.model_info();
             }
             const std::vector<int64_t> shape{counts.read.empty() ? 0 : i.num_moe_layers, i.num_experts};
             py::array_t<int64_t> wanted = to_array(std::move(counts.wanted), shape);
             py::array_t<int64_t> read = to_array(std::move(counts.read), shape);
             return py::make_tuple(counts.steps, counts.rows, wanted, read);
           })
      .def("reset_stats", &Engine::reset_stats, release())
      .def("model_info",
           [](const Engine& e) {
             ModelInfo i;
             {
               ReleaseGil nogil;
               i = e.model_info();
             }
             return to_dict(i);
           })
      .def("check_integrity", &Engine::check_integrity, release())
      .def(
          "forward",
          [](Engine& e, const std::vector<int32_t>& ids, int64_t chunk, const py::object& images) {
            import_numpy();
            std::vector<ImageInput> converted = to_images(images);
            std::vector<float> logits;
            {
              ReleaseGil nogil;
              logits = e.forward(ids, chunk, std::move(converted));
            }
            py::array_t<float> out({int64_t(ids.size()), int64_t(logits.size() / ids.size())});
            std::copy(logits.begin(), logits.end(), out.mutable_data());
            return out;
          },
          py::arg("token_ids"), py::arg("chunk") = 0, py::arg("images") = py::none())
      .def("take_router_logits",
           [](Engine& e) {
             import_numpy();
             RouterLogits logits;
             {
               ReleaseGil nogil;
               logits = e.take_router_logits();
             }
             return to_dict(std::move(logits));
           })
      .def(
          "compare_experts",
          [](Engine& e, const std::vector<int32_t>& ids, const std::string& metric) {
            if (metric != "frobenius" && metric != "cosine")
              invalid("metric", "expected \"frobenius\" or \"cosine\", got \"", metric, "\"");
            import_numpy();
            ExpertComparison c;
            {
              ReleaseGil nogil;
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

  wait_for_calls_at_exit();

  m.def("simulate", &simulate_recorded,
        "An expert selection on recorded router logits: dict(layers, routed_experts [order.size, L, k]). `recorded` is a dict as "
        "of "
        "Engine.take_router_logits(); step s has rows order[offsets[s]:offsets[s + 1]] of it. See csrc/research/simulation.h.",
        py::arg("recorded"), py::arg("selection"), py::arg("order").noconvert(), py::arg("offsets").noconvert());
  m.def("simulate_tier", &simulate_tier_recorded,
        "The same steps with only some experts in memory: dict of counts [steps, L] and sums [steps]. See "
        "csrc/research/tier_simulation.h.",
        py::arg("recorded"), py::arg("selection"), py::arg("order").noconvert(), py::arg("offsets").noconvert(), py::kw_only(),
        py::arg("policy"), py::arg("residents"), py::arg("lists") = ExpertHistory(), py::arg("layer_seconds") = 0.0,
        py::arg("expert_seconds") = 0.0, py::arg("read_seconds") = 0.0, py::arg("guesses") = py::none(),
        py::arg("num_guesses") = 0, py::arg("distance") = 1, py::arg("seeds") = py::none());
  m.def(
      "parse_selection", [](const std::string& text, int top_k) { return to_string(parse_selection(text, top_k)); },
      "The canonical form of an expert-selection text for a model of top_k experts per token (0 = not known), which lynx's alpha "
      "depends on; ValidationError for an unknown policy, key or value.",
      py::arg("text"), py::arg("top_k") = 0);
}

}  // namespace lynx_rt
