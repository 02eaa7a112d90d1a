#include "model/family.h"

#include "checkpoint/dummy.h"

#include <functional>

namespace lynx_rt {

namespace {
const std::vector<std::reference_wrapper<const Family>>& families() {
  static const std::vector<std::reference_wrapper<const Family>> all = {qwen3_family(), qwen3_moe_family()};
  return all;
}
}  // namespace

std::vector<std::string> supported_model_types() {
  std::vector<std::string> out;
  for (const Family& f : families()) out.push_back(f.model_type);
  return out;
}

const Family& find_family(const std::string& model_type) {
  std::string known;
  for (const Family& f : families()) {
    if (model_type == f.model_type) return f;
    known += (known.empty() ? "" : ", ") + std::string(f.model_type);
  }
  fail(ErrorCode::kUnsupported, "model_type", "config.json: model_type \"", model_type,
       "\" is not supported; supported: ", known);
}

ModelConfig read_model_config(const std::string& path) {
  ConfigReader reader = ConfigReader::open(path + "/config.json");
  return find_family(reader.string("model_type")).read_config(reader);
}

void load_weights(const ModelConfig& config, const Checkpoint& checkpoint, ModelWeights& weights) {
  const Family& family = find_family(config.model_type);
  weights.layers.resize(size_t(config.num_layers));
  std::vector<TensorSpec> specs = family.specs(config, checkpoint, weights);
  std::vector<std::string> ignored = family.ignored_tensors;
  if (config.tie_word_embeddings) ignored.push_back("lm_head.weight");  // some tied checkpoints still store it
  weights.owned = bind_weights(checkpoint, specs, ignored);
  if (config.tie_word_embeddings) weights.lm_head = weights.embed;
}

void load_dummy_weights(const ModelConfig& config, bool shared, ModelWeights& weights) {
  weights.layers.resize(size_t(config.num_layers));
  weights.owned = dummy_weights(find_family(config.model_type).specs(config, Checkpoint(), weights), config.dtype, shared);
  if (config.tie_word_embeddings) weights.lm_head = weights.embed;
}

}  // namespace lynx_rt
