// Readers of config.json that families share. Each notes which keys it knows, so that the rest can be reported.
#pragma once
#include <string>
#include <vector>

#include "checkpoint/config.h"
#include "model/model_config.h"

namespace lynx_rt {

inline constexpr int64_t kMaxDim = 1 << 24;  // any single size of a model; keeps products of three within int64
inline constexpr int64_t kMaxLayers = 1 << 14;
// Limits on the sums over all layers, which bound the memory that an absurd config can make a load allocate.
inline constexpr int64_t kMaxExperts = 1 << 17;
inline constexpr int64_t kMaxLatentHeads = 1 << 20;

// The differences between families in the keys that all of them have.
struct CommonKeys {
  double rms_norm_eps = 1e-6;  // without a key: the family's default in transformers
  double rope_theta = 10000;
  bool partial_rotary = false;  // whether the family rotates a part of a head; partial_rotary_factor must be 1 where it does not
  double partial_rotary_factor = 1;
  const char* head_dim = "head_dim";      // the key's name
  bool rope_by_layer_type = false;        // the family reads its ropes itself, by read_layer_rope()
  const char* hidden_act = "hidden_act";  // the key's name
  bool gelu = false;                      // whether the family's activation may be gelu_pytorch_tanh, which it is without the key
  bool relu2 = false;                     // the family's activation is relu2, of MLPs without gate
  const char* norm_eps = "rms_norm_eps";  // the key's name
  int64_t num_layers = 0;                 // where the family does not read num_hidden_layers
};

// Reads the keys that all families have: sizes, heads, norm, tying, dtype, eos_token_id; the rope by read_rope(). In the result
// all layers are dense, and attend to all tokens at the usual scale. hidden_act must be silu.
ModelConfig read_common(const ConfigReader& config, const CommonKeys& keys = {});

// Reads the dtype, and whether the config states it.
void read_dtype(const ConfigReader& config, ModelConfig& m);

// Reads rope_scaling and rope_theta, or rope_parameters (transformers 5), and partial_rotary_factor in any of the places where
// configs have it. `head_dim`: the number of columns of a head that the factor refers to. read_common() calls this with the head
// size.
void read_rope(const ConfigReader& config, int64_t head_dim, ModelConfig& m, const CommonKeys& keys = {});

// Reads rope_parameters.<layer_type>, the rope of the layers of that type, whose heads have head_dim columns. `absent`: the rope where
// the config has no rope_parameters, with its partial_rotary_factor; its dim and rotated_pairs are set here.
RopeConfig read_layer_rope(const ConfigReader& config, const std::string& layer_type, int64_t head_dim, RopeConfig absent,
                           double partial_rotary_factor);

// The keys of a family's experts. Of several spellings, the first that is present is read.
struct ExpertKeys {
  std::vector<std::string> count = {"num_experts", "num_local_experts"};
  std::vector<std::string> top_k = {"num_experts_per_tok"};
  std::vector<std::string> width = {"moe_intermediate_size"};
  int64_t default_top_k = 0;  // without a key: the family's default in transformers; 0 = a key is required
  bool per_layer = false;     // each key may be a list with an entry per layer, all equal (Hunyuan)
};
// Reads E, k and I. The family decides which layers have experts.
void read_experts(const ConfigReader& config, const ExpertKeys& keys, ModelConfig& m);
// Decides which layers have experts, by decoder_sparse_step and mlp_only_layers (Qwen).
void read_sparse_layers(const ConfigReader& config, ModelConfig& m);

// Decides which layers have experts, by mlp_layer_types ("sparse", "dense"); returns false, and decides nothing, where it is absent.
bool read_mlp_layer_types(const ConfigReader& config, ModelConfig& m);

// Reads sliding_window, `absent` tokens where the key is absent; 0 and null mean none. All layers have the window, or those that
// layer_types ("sliding_attention", "full_attention") names.
void read_window(const ConfigReader& config, ModelConfig& m, int64_t absent = 0);
// Reads sliding_window in a family that has one window for all layers: `absent` tokens where the key is absent; null means none.
void read_uniform_window(const ConfigReader& config, ModelConfig& m, int64_t absent = 0);
// Reads sliding_window in a family where use_sliding_window switches it on (Qwen): 4096 tokens where the key is absent. Where
// layer_types is absent, has_window(layer, max_window_layers) decides which layers have it.
void read_switched_window(const ConfigReader& config, ModelConfig& m, bool (*has_window)(int64_t layer, int64_t max_layers));

// Reads an integer, or a list with an equal entry for each layer. Throws kUnsupported where the entries differ.
int64_t read_uniform(const ConfigReader& config, const std::string& key, int64_t min, int64_t max, int64_t num_layers);
// Throw kUnsupported where the key is present and is not `only`, the one value that the family's code computes.
void require_flag(const ConfigReader& config, const std::string& key, bool only);
void require_word(const ConfigReader& config, const std::string& key, const std::string& only);

// Throws kUnsupported where no layer has pages: the engine's memory of a sequence is counted in them.
void require_pages(const ConfigReader& config, const std::string& key, const ModelConfig& m);

// Throws kCorruptFile where a layer is dense and intermediate_size is missing or out of range.
void require_mlp_width(const ConfigReader& config, const ModelConfig& m);

// Throws kUnsupported: "KEY VALUE is not supported; supported: ...".
[[noreturn]] void unsupported(const ConfigReader& config, const std::string& key, const std::string& value,
                              const std::string& supported);

}  // namespace lynx_rt
