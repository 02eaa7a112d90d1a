// Llama 4 with its vision tower. The text model alone is loaded and run, as llama4_text.
#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

const Family& llama4_text_family();

namespace {

ModelConfig read_config(const ConfigReader& c) {
  const std::optional<ConfigReader> text = c.object("text_config");
  if (!text) c.fail_key("text_config", "missing, expected an object");
  ModelConfig m = llama4_text_family().read_config(*text);
  m.model_type = c.string("model_type");
  if (!m.dtype_stated) read_dtype(c, m);
  if (m.quantization.empty()) m.quantization = read_quantization_config(c);
  for (const char* image : {"vision_config", "boi_token_index", "eoi_token_index", "image_token_index"}) c.has(image);
  return m;
}

}  // namespace

const Family& llama4_family() {
  static const Family family{"llama4", read_config, llama4_text_family().specs, {"vision_model.*", "multi_modal_projector.*"}};
  return family;
}

}  // namespace lynx_rt
