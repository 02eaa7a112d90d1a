#include "model/family.h"

#include "checkpoint/dummy.h"

#include <cmath>
#include <functional>

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
// Families that people ask for and why they are none of these.
const char* reason(const std::string& model_type) {
  static const std::pair<const char*, const char*> kReasons[] = {
      {"deepseek_v32", "sparse attention"}, {"deepseek_v4", "sparse attention"},
      {"glm_moe_dsa", "sparse attention"},  {"qwen3_next", "linear attention"},
      {"qwen3_5_moe", "linear attention"},  {"qwen3_5_moe_text", "linear attention"},
      {"kimi_linear", "linear attention"},  {"bailing_hybrid", "linear attention"},
      {"minimax", "linear attention"},      {"jamba", "state-space layers"},
      {"nemotron_h", "state-space layers"}, {"granitemoehybrid", "state-space layers"},
      {"lfm2_moe", "convolution layers"},   {"longcat_flash", "experts that compute nothing"}};
  for (const auto& [name, text] : kReasons)
    if (model_type == name) return text;
  return nullptr;
}
}  // namespace

const Family& find_family(const std::string& model_type) {
  std::string known;
  for (const Family& f : families()) {
    if (model_type == f.model_type) return f;
    known += (known.empty() ? "" : ", ") + std::string(f.model_type);
  }
  const char* why = reason(model_type);
  fail(ErrorCode::kUnsupported, "model_type", "config.json: model_type \"", model_type, "\" is not supported",
       why ? str_cat(" (", why, ")") : "", "; supported: ", known);
}

ModelConfig read_model_config(const std::string& path, std::vector<std::string>* unread) {
  ConfigReader reader = ConfigReader::open(path + "/config.json");
  ModelConfig config = find_family(reader.string("model_type")).read_config(reader);
  if (config.quantization.empty()) config.quantization = read_quantization_file(path);
  config.router.num_experts = int(config.num_experts);
  config.router.top_k = int(config.num_experts_per_tok);
  try {
    if (config.num_experts > 0) check_rule(config.router);
  } catch (const Error& e) {
    fail(ErrorCode::kCorruptFile, e.field(), reader.name(), ": ", e.what());
  }
  // The multiplier reaches what experts add through their weights; mlp() has none.
  if (config.residual_multiplier != 1 && (config.shared_expert_width > 0 || config.num_moe_layers() < config.num_layers))
    fail(ErrorCode::kUnsupported, "residual_multiplier", reader.name(),
         ": residual_multiplier is supported where every layer has experts and none is shared");
  if (unread) *unread = reader.unread_keys();
  return config;
}

namespace {
// Experts are compared by them: a NaN would be in no order.
void check_choice_biases(ModelWeights& weights) {
  for (size_t l = 0; l < weights.layers.size(); ++l) {
    const WeightView& bias = weights.layers[l].choice_bias;
    weights.copies.read(bias);
    for (int64_t e = 0; e < bias.cols; ++e)
      if (const float v = static_cast<const float*>(bias.data)[e]; !std::isfinite(v))
        fail(ErrorCode::kCorruptFile, "e_score_correction_bias", "e_score_correction_bias of layer ", l, ": expert ", e,
             ": expected a finite value, got ", double(v));
  }
}
}  // namespace

void load_weights(const ModelConfig& config, const Checkpoint& checkpoint, ModelWeights& weights, ReadCopies when) {
  const Family& family = find_family(config.model_type);
  weights.layers.resize(size_t(config.num_layers));
  std::vector<TensorSpec> specs = family.specs(config, checkpoint, weights);
  std::vector<std::string> ignored = family.ignored_tensors;
  if (config.tie_word_embeddings) ignored.push_back("lm_head.weight");  // some tied checkpoints still store it
  // Layers after the last, quantised or not, predict further tokens (MTP: DeepSeek-V3, GLM-4.5) and are not run.
  for (int64_t l = config.num_layers;; ++l) {
    const std::string layer = "model.layers." + std::to_string(l) + ".";
    const auto first = checkpoint.tensors().lower_bound(layer);
    if (first == checkpoint.tensors().end() || !first->first.starts_with(layer)) break;
    ignored.push_back(layer + "*");
  }
  LoadNotes notes;
  weights.copies =
      bind_weights(checkpoint, specs, ignored, config.quantization, config.dtype, when == ReadCopies::kNow, &notes);
  weights.warnings.insert(weights.warnings.end(), notes.warnings.begin(), notes.warnings.end());
  weights.not_used = std::move(notes.not_used);
  if (when != ReadCopies::kNever) check_choice_biases(weights);
  if (config.tie_word_embeddings) weights.lm_head = weights.embed;
}

void load_dummy_weights(const ModelConfig& config, bool shared, ModelWeights& weights) {
  weights.layers.resize(size_t(config.num_layers));
  weights.owned = dummy_weights(find_family(config.model_type).specs(config, Checkpoint(), weights), config.dtype, shared);
  if (config.tie_word_embeddings) weights.lm_head = weights.embed;
}

}  // namespace lynx_rt
