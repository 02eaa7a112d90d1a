#include "engine/expert_memory.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <system_error>

#include "base/error.h"
#include "engine/memory_shares.h"
#include "model/pack_experts.h"

namespace lynx_rt {

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

bool makes_expert_file(const EngineOptions& o, const ModelConfig& config) {
  const bool wanted = !o.expert_memory.empty() || (!o.memory.empty() && config.num_moe_layers() > 0);
  return o.expert_file.empty() && wanted && !o.quantization_cache.empty();
}

std::shared_ptr<const ExpertFile> open_expert_file(const std::string& path, const EngineOptions& o, const ModelConfig& config,
                                                   const Checkpoint& checkpoint, bool host_memory) {
  if (!host_memory) {
    if (!o.expert_file.empty())
      fail(ErrorCode::kUnsupported, "expert_file",
           "expert_file: experts come from a file of their own on the CPU only, got device=\"", o.device,
           "\"; pass expert_memory alone, with which experts that do not fit lie in host memory");
    if (!o.expert_memory.empty() && makes_expert_file(o, config))
      invalid("quantization_cache", "expected none with expert_memory on a device, got \"", o.quantization_cache, "\"");
    return nullptr;
  }
  if (o.expert_file.empty() && o.expert_memory.empty() && !makes_expert_file(o, config)) return nullptr;
  if (!o.expert_memory.empty()) parse_memory("expert_memory", o.expert_memory, 0, 0);
  if (o.load_format == "dummy")
    invalid(!o.expert_file.empty()     ? "expert_file"
            : !o.expert_memory.empty() ? "expert_memory"
                                       : "memory",
            "expected none with load_format=\"dummy\"");
  if (!o.expert_file.empty()) return std::make_shared<const ExpertFile>(o.expert_file);
  if (!makes_expert_file(o, config))
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
