#include "model/families/common/qwen_vision.h"

namespace lynx_rt {

ModelConfig read_text_part(const ConfigReader& c, ModelConfig (*read_text)(const ConfigReader& c), std::optional<bool> tied) {
  const std::optional<ConfigReader> part = c.object("text_config");
  if (!part) c.fail_key("text_config", "missing, expected an object");
  ModelConfig m = read_text(*part);
  m.model_type = c.string("model_type");
  if (!m.dtype_stated) read_dtype(c, m);
  if (m.quantization.empty()) m.quantization = read_quantization_config(c);
  // transformers writes another value into text_config than counts for the whole model.
  m.tie_word_embeddings = c.boolean_or("tie_word_embeddings", tied.value_or(m.tie_word_embeddings));
  for (const char* key : {"vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"})
    c.has(key);
  return m;
}

void accept_mrope(const ConfigReader& c) {
  for (const char* rope : {"rope_scaling", "rope_parameters"})
    if (const std::optional<ConfigReader> r = c.object(rope)) {
      r->integers_or("mrope_section", {}, 0, 1 << 16);
      r->boolean_or("mrope_interleaved", true);
    }
}

ModelConfig read_qwen3_vl_text(const ConfigReader& c) {
  c.has("model_type");
  ModelConfig m = read_common(c, {.rope_theta = 500000});
  accept_mrope(c);
  m.qk_norm = QkNorm::kHead;
  m.attention_bias = m.output_bias = c.boolean_or("attention_bias", false);
  return m;
}

}  // namespace lynx_rt
