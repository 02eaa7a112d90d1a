// Binds what is done with a model folder without an engine: `lynx-rt inspect`, `lynx-rt pack`.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <string>

#include "base/memory.h"
#include "bindings.h"
#include "checkpoint/gguf.h"
#include "engine/memory_shares.h"
#include "engine/public_fields.h"
#include "gil.h"
#include "model/describe.h"
#include "model/family.h"
#include "model/pack_experts.h"
#include "tiers/direct_reader.h"

namespace py = pybind11;

namespace lynx_rt {

namespace {

py::dict inspect(const std::string& path) {
  ModelDescription m;
  {
    const ReleaseGil nogil;
    m = describe_model(path);
  }
  const ModelConfig& c = m.config;
  py::dict d;
  d["model_type"] = c.model_type;
  d["dtype"] = dtype_name(c.dtype);
#define LYNX_RT_FIELD(name) d[#name] = c.name;
  LYNX_RT_MODEL_SHAPE_FIELDS(LYNX_RT_FIELD)
#undef LYNX_RT_FIELD
  d["num_moe_layers"] = c.num_moe_layers();
  d["intermediate_size"] = c.intermediate_size;
  d["router"] = c.num_experts ? py::object(py::str(describe_router(c))) : py::none();
  d["attention"] = describe_attention(c);
  d["rope"] = describe_rope(c);
  d["tie_word_embeddings"] = m.tied;
  d["num_tensors"] = m.num_tensors;
  d["num_files"] = m.num_files;
  d["quantization"] = c.quantization.empty() ? "none" : c.quantization.description();
  d["checkpoint_bytes"] = m.checkpoint_bytes;
  d["weight_bytes"] = m.weight_bytes;
  d["expert_bytes"] = m.expert_bytes;
  d["active_bytes_per_token"] = m.active_bytes_per_token;
  d["kv_bytes_per_token"] = m.kv_bytes_per_token;
  d["kv_bytes_per_sequence"] = m.kv_bytes_per_sequence;
  d["state_bytes_per_sequence"] = m.state_bytes_per_sequence;
  d["copied_weight_bytes"] = m.copied_weight_bytes;
  py::list options;
  for (const WeightOption& o : m.options) {
    py::dict option;
    option["quantization"] = o.quantization;
    option["weight_bytes"] = o.mapped_bytes + o.anonymous_bytes;
    option["mapped_weight_bytes"] = o.mapped_bytes;
    option["anonymous_weight_bytes"] = o.anonymous_bytes;
    option["bytes_per_token"] = o.bytes_per_token;
    option["expert_bytes"] = o.expert_bytes;
    options.append(option);
  }
  d["options"] = options;
  d["warnings"] = m.warnings;
  d["not_used"] = m.not_used;
  d["keys_not_understood"] = m.keys_not_understood;
  return d;
}

py::object to_object(const Json& json) {
  return std::visit(
      [](const auto& value) -> py::object {
        using T = std::decay_t<decltype(value)>;
        if constexpr (std::is_same_v<T, Json::Array>) {
          py::list items(value.size());
          for (size_t i = 0; i < value.size(); ++i) items[i] = to_object(value[i]);
          return items;
        } else if constexpr (std::is_same_v<T, Json::Object>) {
          py::dict members;
          for (const auto& [key, member] : value) members[py::str(key)] = to_object(member);
          return members;
        } else {
          return py::cast(value);
        }
      },
      json.value);
}

py::object gguf_metadata(const std::string& path) {
  const GgufFile file = [&] {
    const ReleaseGil nogil;
    return GgufFile::open(path);
  }();
  py::dict members;
  for (const auto& [key, member] : file.metadata()) members[py::str(key)] = to_object(member);
  return members;
}

py::dict pack(const std::string& path, const std::string& output, const std::string& quantization, int num_threads,
              const py::object& on_progress) {
  PackOptions options{quantization, num_threads, progress_callback(on_progress)};
  PackedExperts packed;
  {
    const ReleaseGil nogil;
    packed = pack_experts(path, output, options);
  }
  py::dict d;
  d["num_layers"] = packed.num_layers;
  d["num_records"] = packed.num_records;
  d["record_bytes"] = packed.record_bytes;
  d["file_bytes"] = packed.file_bytes;
  return d;
}

py::list foretell(const std::string& path, int64_t memory, int64_t max_num_seqs, int64_t max_model_len,
                  const std::string& expert_policy) {
  EngineOptions options;
  options.max_num_seqs = max_num_seqs;
  options.max_model_len = max_model_len;
  options.expert_policy = expert_policy;
  options.max_num_batched_tokens = std::max(options.max_num_batched_tokens, max_num_seqs);
  std::vector<ForetoldMemory> foretold;
  {
    const ReleaseGil nogil;
    foretold = foretell_memory(path, memory, options);
  }
  py::list list;
  for (const ForetoldMemory& f : foretold) {
    py::dict d;
    d["quantization"] = f.quantization;
    d["error"] = f.error.empty() ? py::object(py::none()) : py::str(f.error);
    d["weights"] = f.demand.weights;
    d["steps"] = f.demand.steps;
    d["kv"] = f.kv_bytes;
    d["max_model_len"] = f.max_model_len;
    d["experts"] = f.shares.experts;
    d["slots"] = f.num_slots();
    d["low"] = f.demand.low;
    d["num_experts"] = f.demand.num_experts;
    list.append(d);
  }
  return list;
}

// Returns the bytes per second of reads of 1 MiB at random places of a file, past the page cache; 0 for a file of less than 64 MiB.
double disk_rate(const std::string& path) {
  DirectReader reader;
  double best = 0;
  for (const DepthRate& r : measure_depth(reader, std::make_shared<const DirectFile>(path))) best = std::max(best, r.rate);
  return best;
}

}  // namespace

void register_inspect(py::module_& m) {
  m.def("supported_model_types", &supported_model_types, "What `model_type` of a config.json may be.");
  m.def("inspect", &inspect, py::arg("path"),
        "What a model folder or a GGUF file holds, by config.json and the headers of its tensors' files: a dict of what `lynx-rt "
        "inspect --json` "
        "prints. Raises what making an Engine of the folder would.");
  m.def("foretell_memory", &foretell, py::arg("path"), py::arg("memory"), py::arg("max_num_seqs"), py::arg("max_model_len"),
        py::arg("expert_policy") = "lfu",
        "How an Engine would divide `memory`, for each `quantization`: bytes, and the numbers of experts that there is memory "
        "for and in "
        "all. Raises what inspect() raises.");
  m.def(
      "parse_memory",
      [](const std::string& text, const std::string& field) {
        const int64_t free = free_memory_bytes();
        return field == "memory" ? parse_total(text, free) : parse_memory(field, text, free, free);
      },
      py::arg("text"), py::arg("field") = "memory",
      "Bytes that Engine(memory=text) asks for, or another option in the same form. Raises ValidationError.");
  m.def("disk_rate", &disk_rate, py::arg("path"), py::call_guard<py::gil_scoped_release>());
  m.def("pack_experts", &pack, py::arg("path"), py::arg("output"), py::arg("quantization") = "none", py::arg("num_threads") = 0,
        py::arg("on_progress") = py::none(),
        "Writes the experts of a model to a file of their own, one record each: what `lynx-rt pack` does. on_progress(done, "
        "total) gets "
        "bytes; what it raises ends the work and leaves no file. Raises ValidationError (field output), CheckpointError, "
        "ModelNotFoundError, UnsupportedModelError.");
  m.def("gguf_metadata", &gguf_metadata, py::arg("path"),
        "The keys and values of a GGUF file, or of the first part of a split model. Raises CheckpointError, ModelNotFoundError.");
}

}  // namespace lynx_rt
