// Typed reading of config.json with errors that name the key, and the model description that it becomes.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/types.h"

namespace lynx_rt {

// What a decoder-only model is made of; everything the model code needs to know, in the field's standard terms.
// Written by model/families/<model_type>.cc from config.json; the comment is the usual config key.
struct ModelConfig {
  std::string model_type;               // model_type
  int64_t hidden_size = 0;              // H; hidden_size
  int64_t num_layers = 0;               // num_hidden_layers
  int64_t num_heads = 0;                // A; num_attention_heads
  int64_t num_kv_heads = 0;             // num_key_value_heads, absent = A
  int64_t head_dim = 0;                 // D; head_dim, absent or null = H / A
  int64_t intermediate_size = 0;        // width of the dense MLP; intermediate_size
  int64_t vocab_size = 0;               // V; vocab_size
  int64_t max_position_embeddings = 0;  // longest context, tokens; max_position_embeddings
  float rms_norm_eps = 1e-6f;           // rms_norm_eps
  float rope_theta = 10000.f;           // rope_parameters.rope_theta, or rope_theta
  bool attention_bias = false;          // biases on q, k, v, o projections; attention_bias
  bool qk_norm = false;                 // per-head RMSNorm on q and k before rope
  bool tie_word_embeddings = false;     // tie_word_embeddings
  DType dtype = DType::kBF16;           // dtype, or torch_dtype; absent = float32
  // Mixture of experts; num_experts = 0 is a dense model.
  int64_t num_experts = 0;             // E; num_experts, num_local_experts
  int64_t num_experts_per_tok = 0;     // k; num_experts_per_tok
  int64_t moe_intermediate_size = 0;   // I; moe_intermediate_size
  bool norm_topk_prob = false;         // divide the top-k weights by their sum; norm_topk_prob
  std::vector<bool> moe_layer;         // [num_layers] true where the layer has experts instead of a dense MLP
  std::vector<int32_t> eos_token_ids;  // eos_token_id: a number, a list, or absent

  int64_t num_moe_layers() const { return std::count(moe_layer.begin(), moe_layer.end(), true); }
};

// A JSON object with typed access. Every getter throws kCorruptFile naming file, key, what was expected and what was
// found. Copies share the parsed document. Thread-safety: const methods are safe from any thread.
class ConfigReader {
 public:
  // `path`: a config.json. Throws kNotFound, kCorruptFile (not JSON, not an object, over 16 MB, duplicate keys).
  static ConfigReader open(const std::string& path);
  static ConfigReader parse(const std::string& text, const std::string& name_in_errors);

  bool has(const std::string& key) const;  // present and not null
  int64_t integer(const std::string& key, int64_t min, int64_t max) const;
  int64_t integer_or(const std::string& key, int64_t fallback, int64_t min, int64_t max) const;
  double number(const std::string& key, double min, double max) const;  // finite
  double number_or(const std::string& key, double fallback, double min, double max) const;
  bool boolean_or(const std::string& key, bool fallback) const;
  std::string string(const std::string& key) const;
  std::string string_or(const std::string& key, const std::string& fallback) const;
  std::vector<int64_t> integers_or(const std::string& key, std::vector<int64_t> fallback, int64_t min, int64_t max) const;
  std::vector<int64_t> integer_or_list(const std::string& key, int64_t min, int64_t max) const;  // 2 -> [2]; absent -> []
  std::optional<ConfigReader> object(const std::string& key) const;                              // nullopt where absent or null
  std::string first_of(const std::vector<std::string>& keys) const;  // first key present; throws naming all where none is
  std::vector<std::string> keys() const;
  const std::string& name() const { return name_; }
  [[noreturn]] void fail_key(const std::string& key, const std::string& text) const;

 private:
  struct Node;
  std::shared_ptr<const Node> node_;
  std::string name_;  // for errors: "config.json" or "config.json: rope_parameters"
};

// dtype / torch_dtype ("bfloat16", "torch.bfloat16", ...); absent = float32; others throw kUnsupported.
DType read_config_dtype(const ConfigReader& config);

}  // namespace lynx_rt
