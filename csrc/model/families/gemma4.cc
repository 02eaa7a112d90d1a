// Gemma 4 with its vision and audio towers. The text model alone is loaded and run, as gemma4_text.
#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

const Family& gemma4_text_family();

namespace {

ModelConfig read_config(const ConfigReader& c) {
  const std::optional<ConfigReader> text = c.object("text_config");
  if (!text) c.fail_key("text_config", "missing, expected an object");
  ModelConfig m = gemma4_text_family().read_config(*text);
  m.model_type = c.string("model_type");
  m.tie_word_embeddings = c.boolean_or("tie_word_embeddings", true);
  if (!m.dtype_stated) read_dtype(c, m);
  if (m.quantization.empty()) m.quantization = read_quantization_config(c);
  for (const char* other :
       {"dtype", "vision_config", "audio_config", "boi_token_id", "eoi_token_id", "image_token_id", "video_token_id",
        "boa_token_id", "eoa_token_id", "eoa_token_index", "audio_token_id", "vision_soft_tokens_per_image"})
    c.has(other);
  return m;
}

}  // namespace

const Family& gemma4_family() {
  static const Family family{"gemma4",
                             read_config,
                             gemma4_text_family().specs,
                             {"model.vision_tower.*", "model.embed_vision.*", "model.audio_tower.*", "model.embed_audio.*"}};
  return family;
}

}  // namespace lynx_rt
