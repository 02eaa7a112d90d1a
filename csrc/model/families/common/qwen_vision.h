// The parts that Qwen's models with a vision tower share. Their text models alone are loaded and run.
#pragma once
#include <optional>

#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

// Reads the config of a model whose text part is the object text_config, which `read_text` reads; its other parts are not read.
// `tied`: tie_word_embeddings where the key is absent beside text_config; without it, what text_config says.
ModelConfig read_text_part(const ConfigReader& config, ModelConfig (*read_text)(const ConfigReader& config),
                           std::optional<bool> tied = std::nullopt);
// Notes the keys of a rope with three axes, which have one position in text: it is the usual rope there.
void accept_mrope(const ConfigReader& config);
// Reads the attention and the sizes of Qwen3-VL's text model; its layers are dense.
ModelConfig read_qwen3_vl_text(const ConfigReader& config);

}  // namespace lynx_rt
