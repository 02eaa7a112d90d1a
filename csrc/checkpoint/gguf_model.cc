#include "checkpoint/gguf_model.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"

namespace lynx_rt {

namespace {

// An architecture of llama.cpp and the model_type of transformers that it is.
struct Architecture {
  std::string_view name, model_type;
  std::string_view block = "mlp.";  // in front of the router and the experts of a layer
  std::string_view experts[3] = {"gate_proj", "up_proj", "down_proj"};
  std::string_view width = "moe_intermediate_size";  // the key of an expert's width
  // Whether llama.cpp makes the weights of a row's experts sum to 1, which the file does not say for old architectures.
  std::optional<bool> normalizes = {};
};

constexpr Architecture kArchitectures[] = {
    {.name = "llama", .model_type = "llama"},
    {.name = "qwen2", .model_type = "qwen2"},
    {.name = "qwen3", .model_type = "qwen3"},
    {.name = "qwen2moe", .model_type = "qwen2_moe", .normalizes = false},
    {.name = "qwen3moe", .model_type = "qwen3_moe", .normalizes = true},
    {.name = "olmoe", .model_type = "olmoe", .width = "intermediate_size", .normalizes = false},
};
// Llama with experts.
constexpr Architecture kMixtral{.name = "llama",
                                .model_type = "mixtral",
                                .block = "block_sparse_moe.",
                                .experts = {"w1", "w3", "w2"},
                                .width = "intermediate_size"};

template <class... Parts>
[[noreturn]] void reject(const GgufFile& file, const std::string& key, const Parts&... parts) {
  fail(ErrorCode::kCorruptFile, key, file.files()[0].path(), ": ", key, ": ", parts...);
}

const Json& required(const GgufFile& file, const std::string& key) {
  const Json* value = file.find(key);
  if (!value) reject(file, key, "missing in the file's metadata");
  return *value;
}

const Architecture& architecture_of(const GgufFile& file) {
  const Json& value = required(file, "general.architecture");
  const auto* name = value.as<std::string>();
  if (!name) reject(file, "general.architecture", "expected a string, got ", describe(value));
  std::string known;
  for (const Architecture& a : kArchitectures) {
    if (a.name == *name) return *name == "llama" && file.find("llama.expert_count") ? kMixtral : a;
    known += (known.empty() ? "" : ", ") + std::string(a.name);
  }
  fail(ErrorCode::kUnsupported, "general.architecture", file.files()[0].path(), ": architecture ", quote(*name),
       " is not supported; supported: ", known);
}

// Writes the members of a config.json.
class ConfigWriter {
 public:
  ConfigWriter(const GgufFile& file, const Architecture& architecture) : file_(file), a_(architecture) {}

  void set(std::string_view name, Json value) { members_.emplace_back(std::string(name), std::move(value)); }
  // Sets a member to the value of the architecture's key.
  void copy(const std::string& key, std::string_view name) { set(name, required(file_, full(key))); }
  bool copy_if(const std::string& key, std::string_view name) {
    const Json* value = file_.find(full(key));
    if (value) set(name, *value);
    return value != nullptr;
  }
  const Json* find(const std::string& key) const { return file_.find(full(key)); }

  Json finish() {
    std::sort(members_.begin(), members_.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    return {std::move(members_)};
  }

 private:
  std::string full(const std::string& key) const { return std::string(a_.name) + "." + key; }

  const GgufFile& file_;
  const Architecture& a_;
  Json::Object members_;
};

// Keys of rope.scaling become rope_scaling.
void set_rope(ConfigWriter& config) {
  config.copy_if("rope.freq_base", "rope_theta");
  const Json* type = config.find("rope.scaling.type");
  const std::string* name = type ? type->as<std::string>() : nullptr;
  if (!name || *name == "none") return;
  Json::Object scaling;  // in rising order of keys
  if (const Json* factor = config.find("rope.scaling.factor")) scaling.emplace_back("factor", *factor);
  if (const Json* length = config.find("rope.scaling.original_context_length"))
    scaling.emplace_back("original_max_position_embeddings", *length);
  scaling.emplace_back("rope_type", Json{*name});
  config.set("rope_scaling", {std::move(scaling)});
}

// Names of a layer's tensors, after "blk.N.", and what they are after "model.layers.N.".
constexpr std::pair<std::string_view, std::string_view> kLayerNames[] = {
    {"attn_norm.", "input_layernorm."},
    {"ffn_norm.", "post_attention_layernorm."},
    {"attn_q.", "self_attn.q_proj."},
    {"attn_k.", "self_attn.k_proj."},
    {"attn_v.", "self_attn.v_proj."},
    {"attn_output.", "self_attn.o_proj."},
    {"attn_q_norm.", "self_attn.q_norm."},
    {"attn_k_norm.", "self_attn.k_norm."},
    {"ffn_gate.", "mlp.gate_proj."},
    {"ffn_up.", "mlp.up_proj."},
    {"ffn_down.", "mlp.down_proj."},
    {"ffn_gate_shexp.", "mlp.shared_expert.gate_proj."},
    {"ffn_up_shexp.", "mlp.shared_expert.up_proj."},
    {"ffn_down_shexp.", "mlp.shared_expert.down_proj."},
    {"ffn_gate_inp_shexp.", "mlp.shared_expert_gate."},
};
constexpr std::pair<std::string_view, std::string_view> kModelNames[] = {
    {"token_embd.", "model.embed_tokens."}, {"output_norm.", "model.norm."}, {"output.", "lm_head."}};

// Returns the name with the part in front replaced, empty where it has none of them.
template <size_t N>
std::string renamed(std::string_view name, const std::pair<std::string_view, std::string_view> (&table)[N]) {
  for (const auto& [from, to] : table)
    if (name.starts_with(from)) return str_cat(to, name.substr(from.size()));
  return "";
}

// Adds a tensor of a layer; `rest` is its name after "blk.N.".
void add_layer_tensor(const Architecture& a, const std::string& layer, std::string_view rest, const TensorInfo& info,
                      const std::string& own_name, std::map<std::string, TensorInfo>& out) {
  constexpr std::string_view kExperts[] = {"ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight"};
  const auto* stacked = std::find(std::begin(kExperts), std::end(kExperts), rest);
  if (stacked != std::end(kExperts) && info.shape.size() == 3 && info.shape[0] > 0) {
    const int64_t count = info.shape[0], bytes = info.bytes / count;
    for (int64_t e = 0; e < count; ++e) {
      TensorInfo expert = info;
      expert.shape = {info.shape[1], info.shape[2]};
      expert.data = info.data + e * bytes;
      expert.bytes = bytes;
      out.emplace(str_cat(layer, a.block, "experts.", e, ".", a.experts[stacked - std::begin(kExperts)], ".weight"), expert);
    }
    return;
  }
  std::string name = rest == "ffn_gate_inp.weight" ? str_cat(a.block, "gate.weight") : renamed(rest, kLayerNames);
  TensorInfo one = info;
  // The gate of a shared expert is a vector in the file and a matrix of one row in transformers.
  if (rest == "ffn_gate_inp_shexp.weight" && one.shape.size() == 1) one.shape.insert(one.shape.begin(), 1);
  out.emplace(name.empty() ? own_name : layer + name, std::move(one));
}

}  // namespace

Json gguf_config(const GgufFile& file) {
  const Architecture& a = architecture_of(file);
  ConfigWriter config(file, a);
  config.set("model_type", {std::string(a.model_type)});
  config.set("tie_word_embeddings", {file.tensors().count("output.weight") == 0});
  config.set("dtype", {std::string("bfloat16")});  // of what is decoded; the file's own floats are norms and routers
  config.copy("embedding_length", "hidden_size");
  config.copy("block_count", "num_hidden_layers");
  config.copy("attention.head_count", "num_attention_heads");
  config.copy_if("attention.head_count_kv", "num_key_value_heads");
  config.copy_if("attention.key_length", "head_dim");
  config.copy("attention.layer_norm_rms_epsilon", "rms_norm_eps");
  config.copy("context_length", "max_position_embeddings");
  set_rope(config);
  const auto embedding = file.tensors().find("token_embd.weight");
  if (embedding == file.tensors().end() || embedding->second.shape.size() != 2)
    reject(file, "token_embd.weight", "expected a tensor of two dimensions");
  config.set("vocab_size", {embedding->second.shape[0]});
  if (const Json* eos = file.find("tokenizer.ggml.eos_token_id")) config.set("eos_token_id", *eos);
  if (config.find("expert_count")) {
    config.copy("expert_count", "num_experts");
    config.copy("expert_used_count", "num_experts_per_tok");
    // Older files state an expert's width as the width of the layer.
    if (!config.copy_if("expert_feed_forward_length", a.width)) config.copy("feed_forward_length", a.width);
    if (a.width != "intermediate_size") config.copy_if("feed_forward_length", "intermediate_size");
    if (!config.copy_if("expert_shared_feed_forward_length", "shared_expert_intermediate_size") && a.name == "qwen2moe")
      config.copy("feed_forward_length", "shared_expert_intermediate_size");
    if (a.normalizes) config.set("norm_topk_prob", {*a.normalizes});
  } else {
    config.copy("feed_forward_length", "intermediate_size");
  }
  return config.finish();
}

std::map<std::string, TensorInfo> gguf_tensors(const GgufFile& file) {
  const Architecture& a = architecture_of(file);
  std::map<std::string, TensorInfo> out;
  for (const auto& [name, info] : file.tensors()) {
    constexpr std::string_view kLayer = "blk.";
    const std::string_view text = name;
    int64_t layer = -1;
    const char* const end = text.data() + text.size();
    if (text.starts_with(kLayer)) {
      const auto [after, error] = std::from_chars(text.data() + kLayer.size(), end, layer);
      if (error == std::errc() && layer >= 0 && after < end && *after == '.') {
        const std::string_view rest(after + 1, size_t(end - after - 1));
        add_layer_tensor(a, str_cat("model.layers.", layer, "."), rest, info, name, out);
        continue;
      }
    }
    // Factors of the rope's frequencies are computed from the config.
    if (text == "rope_freqs.weight") continue;
    const std::string own = renamed(text, kModelNames);
    out.emplace(own.empty() ? name : own, info);
  }
  return out;
}

}  // namespace lynx_rt
