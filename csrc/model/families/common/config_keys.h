// What families share when they read config.json. Each function notes which keys it knows, so that the rest can be reported.
#pragma once
#include <string>
#include <vector>

#include "checkpoint/config.h"
#include "model/model_config.h"

namespace lynx_rt {

inline constexpr int64_t kMaxDim = 1 << 24;  // any single size of a model; keeps products of three within int64
inline constexpr int64_t kMaxLayers = 1 << 14;
// Limits over all layers together bound what an absurd config can make us allocate.
inline constexpr int64_t kMaxExperts = 1 << 17;
inline constexpr int64_t kMaxLatentHeads = 1 << 20;

// In what families differ about the keys that all have.
struct CommonKeys {
  double rms_norm_eps = 1e-6;  // where config.json has none: as the family's transformers configuration has it
  double rope_theta = 10000;
  bool partial_rotary = false;  // whether the family rotates a part of a head; partial_rotary_factor must be 1 where it does not
  double partial_rotary_factor = 1;
  const char* head_dim = "head_dim";  // the key
};

// Keys that all families have: sizes, heads, norm, tying, dtype, ends of text. All layers dense with attention over all tokens
// at the usual scale; rope as read_rope() finds it. hidden_act must be silu.
ModelConfig read_common(const ConfigReader& config, const CommonKeys& keys = {});

// dtype, and whether the config says it.
void read_dtype(const ConfigReader& config, ModelConfig& m);

// rope_scaling and rope_theta, or rope_parameters (transformers 5); partial_rotary_factor wherever it is.
// head_dim: the columns of a head that the factor is a part of. Called by read_common() with the head size.
void read_rope(const ConfigReader& config, int64_t head_dim, ModelConfig& m, const CommonKeys& keys = {});

// The keys of a family's experts; of several spellings the first that is there.
struct ExpertKeys {
  std::vector<std::string> count = {"num_experts", "num_local_experts"};
  std::vector<std::string> top_k = {"num_experts_per_tok"};
  std::vector<std::string> width = {"moe_intermediate_size"};
  int64_t default_top_k = 0;  // without a key, as the family's transformers configuration has it; 0 = there must be one
  bool per_layer = false;     // each may be a list with an entry per layer, all the same (Hunyuan)
};
// E, k and I. Which layers have experts is the family's to say. A count or width may be a list with an entry per layer, all
// equal.
void read_experts(const ConfigReader& config, const ExpertKeys& keys, ModelConfig& m);
// Which layers have experts by decoder_sparse_step and mlp_only_layers (Qwen).
void read_sparse_layers(const ConfigReader& config, ModelConfig& m);

// sliding_window, 0 and null meaning none: for all layers, or as layer_types ("sliding_attention", "full_attention") says.
void read_window(const ConfigReader& config, ModelConfig& m);
// The same in a family that has one window for all layers, which is `absent` tokens where the key is absent (null is none).
void read_uniform_window(const ConfigReader& config, ModelConfig& m, int64_t absent = 0);
// The same where use_sliding_window switches the window on (Qwen), of 4096 tokens where its key is absent; which layers have it
// where layer_types is absent is the family's to say, by the layer and max_window_layers.
void read_switched_window(const ConfigReader& config, ModelConfig& m, bool (*has_window)(int64_t layer, int64_t max_layers));

// An integer, or a list with one for each layer, all the same: more than that is kUnsupported.
int64_t read_uniform(const ConfigReader& config, const std::string& key, int64_t min, int64_t max, int64_t num_layers);
// Throws kUnsupported where the key is there and is not `only`: the family knows no other way.
void require_flag(const ConfigReader& config, const std::string& key, bool only);
void require_word(const ConfigReader& config, const std::string& key, const std::string& only);

// intermediate_size where a layer is dense.
void require_mlp_width(const ConfigReader& config, const ModelConfig& m);

// Throws kUnsupported: "KEY VALUE is not supported; supported: ...".
[[noreturn]] void unsupported(const ConfigReader& config, const std::string& key, const std::string& value,
                              const std::string& supported);

}  // namespace lynx_rt
