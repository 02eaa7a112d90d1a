#include "model/families/common/config_keys.h"

#include <algorithm>
#include <cmath>

#include "checkpoint/json.h"

namespace lynx_rt {

void unsupported(const ConfigReader& config, const std::string& key, const std::string& value, const std::string& supported) {
  fail(ErrorCode::kUnsupported, key, config.name(), ": ", key, " ", value, " is not supported; supported: ", supported);
}

void read_dtype(const ConfigReader& c, ModelConfig& m) {
  const std::optional<DType> dtype = read_config_dtype(c);
  m.dtype_stated = dtype.has_value();
  m.dtype = dtype.value_or(DType::kF32);
}

ModelConfig read_common(const ConfigReader& c, const CommonKeys& keys) {
  ModelConfig m;
  m.model_type = c.string("model_type");
  m.hidden_size = c.integer("hidden_size", 1, kMaxDim);
  m.num_layers = keys.num_layers ? keys.num_layers : c.integer("num_hidden_layers", 1, kMaxLayers);
  m.layers.resize(size_t(m.num_layers));
  m.num_heads = c.integer("num_attention_heads", 1, kMaxDim);
  m.num_kv_heads = c.integer_or("num_key_value_heads", m.num_heads, 1, m.num_heads);
  if (m.num_heads % m.num_kv_heads != 0)
    c.fail_key("num_key_value_heads",
               str_cat("expected a divisor of num_attention_heads ", m.num_heads, ", got ", m.num_kv_heads));
  if (!c.has(keys.head_dim) && m.hidden_size % m.num_heads != 0)
    c.fail_key("num_attention_heads", str_cat("expected a divisor of hidden_size ", m.hidden_size, " where ", keys.head_dim,
                                              " is absent, got ", m.num_heads));
  m.head_dim = c.integer_or(keys.head_dim, m.hidden_size / m.num_heads, 1, 1 << 16);
  if (m.head_dim % 2 != 0) c.fail_key(keys.head_dim, str_cat("expected an even number, got ", m.head_dim));
  m.v_head_dim = m.head_dim;
  m.attention_scale = 1.0f / std::sqrt(float(m.head_dim));
  m.intermediate_size = c.integer_or("intermediate_size", 0, 1, kMaxDim);
  m.vocab_size = c.integer("vocab_size", 1, kMaxDim);
  m.max_position_embeddings = c.integer_or("max_position_embeddings", 32768, 1, 1 << 28);
  m.rms_norm_eps = float(c.number_or(keys.norm_eps, keys.rms_norm_eps, 0.0, 1.0));
  m.tie_word_embeddings = c.boolean_or("tie_word_embeddings", false);
  read_dtype(c, m);
  // Ids outside the vocabulary, such as -1, are never sampled, so they can be left out.
  for (int64_t id : c.integer_or_list("eos_token_id", INT64_MIN, INT64_MAX))
    if (id >= 0 && id < m.vocab_size) m.eos_token_ids.push_back(int32_t(id));
  if (!keys.rope_by_layer_type) read_rope(c, m.head_dim, m, keys);
  const std::string act = c.string_or(keys.hidden_act, keys.gelu ? "gelu_pytorch_tanh" : keys.relu2 ? "relu2" : "silu");
  if (keys.relu2) {
    if (act != "relu2") unsupported(c, keys.hidden_act, quote(act), "relu2");
    m.ffn.activation = m.mlp_activation = Activation::kRelu2;
  } else if (keys.gelu && act == "gelu_pytorch_tanh")
    m.ffn.activation = m.mlp_activation = Activation::kGeluTanh;
  else if (act != "silu" && act != "swish")
    unsupported(c, keys.hidden_act, quote(act), keys.gelu ? "gelu_pytorch_tanh, silu" : "silu");
  m.quantization = read_quantization_config(c);
  return m;
}

void read_experts(const ConfigReader& c, const ExpertKeys& keys, ModelConfig& m) {
  const auto read = [&](const std::vector<std::string>& spellings, int64_t max) {
    const std::string key = c.first_of(spellings);
    return keys.per_layer ? read_uniform(c, key, 1, max, m.num_layers) : c.integer(key, 1, max);
  };
  const auto absent = [&](const std::string& key) { return !c.has(key); };
  m.num_experts = read(keys.count, 1 << 16);
  if (keys.default_top_k > 0 && std::all_of(keys.top_k.begin(), keys.top_k.end(), absent)) {
    m.num_experts_per_tok = keys.default_top_k;
    if (m.num_experts_per_tok > m.num_experts)
      c.fail_key(keys.top_k[0],
                 str_cat("missing, and the family's ", keys.default_top_k, " is more than ", m.num_experts, " experts"));
  } else {
    m.num_experts_per_tok = read(keys.top_k, m.num_experts);
  }
  m.moe_intermediate_size = read(keys.width, kMaxDim);
  if (m.num_layers * m.num_experts > kMaxExperts)
    c.fail_key(c.first_of(keys.count), str_cat("num_hidden_layers * num_experts = ", m.num_layers * m.num_experts,
                                               " is over the limit of ", kMaxExperts));
}

void read_sparse_layers(const ConfigReader& c, ModelConfig& m) {
  const int64_t step = c.integer_or("decoder_sparse_step", 1, 1, kMaxLayers);
  const std::vector<int64_t> dense = c.integers_or("mlp_only_layers", {}, 0, kMaxLayers);
  for (int64_t l = 0; l < m.num_layers; ++l)
    m.layers[size_t(l)].moe = (l + 1) % step == 0 && std::find(dense.begin(), dense.end(), l) == dense.end();
  require_mlp_width(c, m);
}

bool read_mlp_layer_types(const ConfigReader& c, ModelConfig& m) {
  const std::vector<std::string> types = c.strings_or("mlp_layer_types", {});
  if (types.empty()) return false;
  if (int64_t(types.size()) != m.num_layers)
    c.fail_key("mlp_layer_types", str_cat("expected one for each of ", m.num_layers, " layers, got ", types.size()));
  for (size_t l = 0; l < types.size(); ++l) {
    if (types[l] != "dense" && types[l] != "sparse") unsupported(c, "mlp_layer_types", quote(types[l]), "dense, sparse");
    m.layers[l].moe = types[l] == "sparse";
  }
  require_mlp_width(c, m);
  return true;
}

namespace {

constexpr int64_t kMaxWindow = 1 << 28;

// Reads sliding_window; 0 = none.
int64_t window_of(const ConfigReader& c, int64_t absent) {
  const std::vector<std::string> keys = c.keys();
  const bool there = std::find(keys.begin(), keys.end(), "sliding_window") != keys.end();
  return c.integer_or("sliding_window", there ? 0 : absent, 0, kMaxWindow);
}

// Reads from layer_types whether each layer has a window; empty where the key is absent.
std::vector<bool> sliding_layers(const ConfigReader& c, const ModelConfig& m, int64_t window) {
  std::vector<bool> out;
  const std::vector<std::string> types = c.strings_or("layer_types", {});
  if (!types.empty() && int64_t(types.size()) != m.num_layers)
    c.fail_key("layer_types", str_cat("expected one for each of ", m.num_layers, " layers, got ", types.size()));
  for (const std::string& type : types) {
    out.push_back(type == "sliding_attention");
    if (!out.back() && type != "full_attention") unsupported(c, "layer_types", quote(type), "full_attention, sliding_attention");
    if (out.back() && window == 0) c.fail_key("sliding_window", "expected a window, which a layer in layer_types has, got none");
  }
  return out;
}

}  // namespace

void read_window(const ConfigReader& c, ModelConfig& m, int64_t absent) {
  const int64_t window = window_of(c, absent);
  const std::vector<bool> sliding = sliding_layers(c, m, window);
  for (size_t l = 0; l < m.layers.size(); ++l) m.layers[l].window = sliding.empty() || sliding[l] ? window : 0;
}

void read_uniform_window(const ConfigReader& c, ModelConfig& m, int64_t absent) {
  const int64_t window = window_of(c, absent);
  const std::vector<bool> sliding = sliding_layers(c, m, window);
  for (size_t l = 0; l < m.layers.size(); ++l) {
    if (!sliding.empty() && sliding[l] != (window > 0))
      unsupported(c, "layer_types", str_cat("with a layer without the sliding_window of ", window), "the same for all layers");
    m.layers[l].window = window;
  }
}

void read_switched_window(const ConfigReader& c, ModelConfig& m, bool (*has_window)(int64_t layer, int64_t max_layers)) {
  const int64_t size = window_of(c, 4096), max_layers = c.integer_or("max_window_layers", 28, 0, kMaxWindow);
  const int64_t window = c.boolean_or("use_sliding_window", false) ? size : 0;
  const std::vector<bool> sliding = sliding_layers(c, m, window);
  for (int64_t l = 0; l < m.num_layers; ++l)
    m.layers[size_t(l)].window = (sliding.empty() ? has_window(l, max_layers) : sliding[size_t(l)]) ? window : 0;
}

int64_t read_uniform(const ConfigReader& c, const std::string& key, int64_t min, int64_t max, int64_t num_layers) {
  const std::vector<int64_t> values = c.integer_or_list(key, min, max);
  if (values.empty()) return c.integer(key, min, max);  // throws: the key is missing or its list empty
  if (values.size() > 1 && int64_t(values.size()) < num_layers)
    c.fail_key(key, str_cat("expected one for each of ", num_layers, " layers, got ", values.size()));
  for (int64_t v : values)
    if (v != values[0]) unsupported(c, key, str_cat("with ", values[0], " and ", v), "the same for all layers");
  return values[0];
}

void require_flag(const ConfigReader& c, const std::string& key, bool only) {
  if (c.boolean_or(key, only) != only) unsupported(c, key, only ? "false" : "true", only ? "true" : "false");
}

void require_word(const ConfigReader& c, const std::string& key, const std::string& only) {
  if (const std::string found = c.string_or(key, only); found != only) unsupported(c, key, quote(found), only);
}

void require_pages(const ConfigReader& c, const std::string& key, const ModelConfig& m) {
  if (!m.has_mixer(MixerKind::kGqa) && !m.has_mixer(MixerKind::kMla))
    unsupported(c, key, "without full_attention", "at least one such layer");
}

void require_mlp_width(const ConfigReader& c, const ModelConfig& m) {
  for (const LayerConfig& l : m.layers)
    if (l.mlp && !l.moe) c.integer("intermediate_size", 1, kMaxDim);
}

}  // namespace lynx_rt
