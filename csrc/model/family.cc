#include "model/family.h"

#include <functional>
#include <map>

#include "checkpoint/gguf_model.h"
#include "checkpoint/tensor_values.h"

namespace lynx_rt {

#define LYNX_RT_FAMILY(name) const Family& name##_family();
#include "model/family_list.inc"
#undef LYNX_RT_FAMILY

namespace {
const std::vector<std::reference_wrapper<const Family>>& families() {
  static const std::vector<std::reference_wrapper<const Family>> all = {
#define LYNX_RT_FAMILY(name) name##_family(),
#include "model/family_list.inc"
#undef LYNX_RT_FAMILY
  };
  return all;
}
}  // namespace

std::vector<std::string> supported_model_types() {
  std::vector<std::string> out;
  for (const Family& f : families()) out.push_back(f.model_type);
  return out;
}

namespace {
// Returns why a family that people ask for is not supported.
const char* reason(const std::string& model_type) {
  static const std::pair<const char*, const char*> kReasons[] = {{"deepseek_v4", "sparse attention"},
                                                                 {"bailing_hybrid", "linear attention"},
                                                                 {"minimax", "linear attention"},
                                                                 {"jamba", "state-space layers"},
                                                                 {"granitemoehybrid", "state-space layers"},
                                                                 {"longcat_flash", "experts that compute nothing"}};
  for (const auto& [name, text] : kReasons)
    if (model_type == name) return text;
  return nullptr;
}
}  // namespace

const Family& find_family(const std::string& model_type) {
  for (const Family& f : families())
    if (model_type == f.model_type) return f;
  const char* why = reason(model_type);
  fail(ErrorCode::kUnsupported, "model_type", "config.json: model_type \"", model_type, "\" is not supported",
       why ? str_cat(" (", why, ")") : "", "; supported: ", joined(families(), [](const Family& f) { return f.model_type; }));
}

namespace {
// Returns the dtype of most bytes of the file's floating tensors; float32 where there is no file. In a quantised checkpoint
// float32 is not counted, since it is the dtype of scales; bfloat16 is the fallback.
DType dtype_of_file(const std::string& path, bool quantized) {
  std::map<DType, int64_t> bytes;
  try {
    const Checkpoint checkpoint = Checkpoint::open(path);
    for (const auto& [name, info] : checkpoint.tensors())
      if (const std::optional<DType> dtype = floating_dtype(info.dtype)) bytes[*dtype] += info.bytes;
  } catch (const Error& e) {
    if (e.code() != ErrorCode::kNotFound) throw;
  }
  if (quantized) bytes.erase(DType::kF32);
  DType most = quantized ? DType::kBF16 : DType::kF32;
  for (const auto& [dtype, count] : bytes)
    if (count > bytes[most]) most = dtype;
  return most;
}
}  // namespace

ModelConfig read_model_config(const std::string& path, std::vector<std::string>* unread) {
  ConfigReader reader =
      is_gguf(path) ? ConfigReader::of(gguf_config(GgufFile::open(path)), path) : ConfigReader::open(path + "/config.json");
  ModelConfig config = find_family(reader.string("model_type")).read_config(reader);
  if (config.quantization.empty() && !is_gguf(path)) config.quantization = read_quantization_file(path);
  if (!config.dtype_stated) config.dtype = dtype_of_file(path, !config.quantization.empty());
  config.router.num_experts = int(config.num_experts);
  config.router.top_k = int(config.num_experts_per_tok);
  try {
    if (config.num_experts > 0) check_rule(config.router);
  } catch (const Error& e) {
    fail(ErrorCode::kCorruptFile, e.field(), reader.name(), ": ", e.what());
  }
  if (unread) *unread = reader.unread_keys();
  return config;
}

}  // namespace lynx_rt
