// The parts that Qwen's models with a vision tower share.
#pragma once
#include <array>
#include <optional>
#include <vector>

#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

// The differences between the families.
struct VisionKeys {
  std::optional<bool> tied = {};  // tie_word_embeddings where the key is absent beside text_config; none: what text_config says
  std::vector<int64_t> deepstack = {};  // deepstack_visual_indexes where the key is absent; none: the key has no effect
};
// Reads the config of a model whose text part is the object text_config, which `read_text` reads, and whose tower is vision_config. Throws
// kUnsupported for a tower that would be computed wrongly.
ModelConfig read_vision_language(const ConfigReader& config, ModelConfig (*read_text)(const ConfigReader& config),
                                 const VisionKeys& keys);
// Reads the sections of a rope with three axes, `absent` where the key is: it is the usual rope in text, whose axes have one position.
void read_mrope(const ConfigReader& config, std::array<int64_t, 3> absent, ModelConfig& m);
// Adds the tower's tensors, model.visual.*, and fills `weights.vision`; neither where the config has no tower, or the checkpoint none of
// its tensors.
void add_vision_tower(WeightTable& table, const Checkpoint& checkpoint, ModelWeights& weights);
// Reads the attention and the sizes of Qwen3-VL's text model; its layers are dense.
ModelConfig read_qwen3_vl_text(const ConfigReader& config);

}  // namespace lynx_rt
