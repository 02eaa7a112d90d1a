#include "engine/expert_memory.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <filesystem>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "model/pack_experts.h"

namespace lynx_rt {

int64_t parse_expert_memory(const std::string& text, int64_t all, int64_t chosen) {
  if (text == "auto") return chosen;
  static constexpr std::pair<std::string_view, double> kUnits[] = {
      {"%", 0},    {"KiB", 1024}, {"MiB", 1048576}, {"GiB", 1073741824}, {"TiB", 1099511627776},
      {"KB", 1e3}, {"MB", 1e6},   {"GB", 1e9},      {"TB", 1e12},        {"B", 1}};
  double unit = 1, value = 0;
  std::string_view number = text;
  for (const auto& [suffix, factor] : kUnits)
    if (number.ends_with(suffix)) {
      unit = factor;
      number.remove_suffix(suffix.size());
      break;
    }
  const bool share = unit == 0;
  if (!read_number(number, value) || !(value >= 0) || value > (share ? 100.0 : 9e18 / unit))
    invalid("expert_memory",
            "expected \"auto\", bytes (\"8GB\", \"512MiB\", \"1000000\") or a share of all experts (\"25%\"), got \"", text,
            "\"");
  return int64_t(share ? std::ceil(value / 100 * double(all)) : value * unit);
}

int64_t bytes_of_all(const ExpertFile& file) {
  int64_t experts = 0;
  for (int64_t l = 0; l < file.num_layers(); ++l) experts += file.num_experts(l);
  return experts * file.max_record_bytes();
}

std::string cached_file(const EngineOptions& o, const ModelConfig& config, const Checkpoint& checkpoint, const char* ending) {
  // The weights before quantisation also depend on config.json: on how they are decoded, and on the dtype that others are
  // converted to.
  std::string before = str_cat("-", config.quantization.empty() ? "" : config.quantization.key() + "-", dtype_name(config.dtype));
  std::replace_if(before.begin(), before.end(), [](unsigned char c) { return !std::isalnum(c); }, '-');
  return str_cat(o.quantization_cache, "/", config.model_type, "-", o.quantization, "-", checkpoint.fingerprint(), before,
                 ending);
}

bool makes_expert_file(const EngineOptions& o) {
  return o.expert_file.empty() && !o.expert_memory.empty() && !o.quantization_cache.empty();
}

std::shared_ptr<const ExpertFile> open_expert_file(const std::string& path, const EngineOptions& o, const ModelConfig& config,
                                                   const Checkpoint& checkpoint) {
  if (o.expert_file.empty() && o.expert_memory.empty()) return nullptr;
  if (!o.expert_memory.empty()) parse_expert_memory(o.expert_memory, 0, 0);
  if (o.load_format == "dummy")
    invalid(o.expert_file.empty() ? "expert_memory" : "expert_file", "expected none with load_format=\"dummy\"");
  if (!o.expert_file.empty()) return std::make_shared<const ExpertFile>(o.expert_file);
  if (!makes_expert_file(o))
    invalid("expert_file",
            "expected the file that `lynx-rt pack` makes of the model, from which experts are read with expert_memory=\"",
            o.expert_memory, "\", or the folder quantization_cache to make it in; got none");
  const std::string file = cached_file(o, config, checkpoint, ".experts");
  if (!std::filesystem::exists(file)) {
    std::error_code error;
    std::filesystem::create_directories(o.quantization_cache, error);
    if (error) invalid("quantization_cache", "cannot make ", o.quantization_cache, ": ", error.message());
    pack_experts(path, file, {o.quantization, o.num_threads, o.on_load_progress});
  }
  return std::make_shared<const ExpertFile>(file);
}

}  // namespace lynx_rt
