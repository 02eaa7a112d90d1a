#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <set>

#include "base/error.h"
#include "checkpoint/gguf_blocks.h"
#include "checkpoint/gguf_model.h"

namespace lynx_rt {

namespace {

// Makes the members of a config.json from the metadata under "<architecture>.". Keys are given without that.
class ConfigWriter {
 public:
  explicit ConfigWriter(const GgufFile& file) : file_(file), prefix_(str_cat(architecture_of(file).name, ".")) {}

  template <class... Parts>
  [[noreturn]] void reject(const std::string& key, const Parts&... parts) const {
    fail(ErrorCode::kCorruptFile, prefix_ + key, file_.files()[0].path(), ": ", prefix_, key, ": ", parts...);
  }
  [[noreturn]] void unsupported(const std::string& key, const std::string& value, const std::string& supported) const {
    fail(ErrorCode::kUnsupported, prefix_ + key, file_.files()[0].path(), ": ", prefix_, key, " ", value,
         " is not supported; supported: ", supported);
  }

  template <class... Parts>
  [[noreturn]] void reject_tensor(const std::string& name, const Parts&... parts) const {
    fail(ErrorCode::kCorruptFile, name, file_.files()[0].path(), ": tensor ", name, ": ", parts...);
  }

  // Throws where a tensor of all experts of a layer holds another number of them.
  void check_experts(int64_t count) const {
    for (const auto& [name, info] : file_.tensors())
      if (name.ends_with("_exps.weight") && info.shape.size() == 3 && info.shape[0] != count)
        reject_tensor(name, "expected ", count, " experts as ", prefix_, "expert_count says, got shape ", info.shape);
  }

  const TensorInfo* tensor(const std::string& name) const {
    const auto at = file_.tensors().find(name);
    return at == file_.tensors().end() ? nullptr : &at->second;
  }

  // Returns the value; null where the key is absent. Keys that were never asked for are refused by finish().
  const Json* find(const std::string& key) {
    read_.insert(key);
    return file_.find(prefix_ + key);
  }
  bool has(const std::string& key) { return find(key) != nullptr; }
  double number(const std::string& key, double absent) {
    const Json* value = find(key);
    if (!value) return absent;
    const Json one = scalar(key, *value);
    if (const auto* integer = one.as<int64_t>()) return double(*integer);
    if (const auto* real = one.as<double>()) return *real;
    reject(key, "expected a number, got ", describe(*value));
  }
  int64_t integer(const std::string& key) {
    const Json* value = find(key);
    if (!value) reject(key, "missing in the file's metadata");
    const Json one = scalar(key, *value);
    const auto* integer = one.as<int64_t>();
    constexpr int64_t kMost = int64_t(1) << 40;  // sums of a few do not overflow; families have limits of their own
    if (!integer || *integer < 0 || *integer > kMost) reject(key, "expected an integer from 0 to 2^40, got ", describe(*value));
    return *integer;
  }
  int64_t integer(const std::string& key, int64_t absent) { return has(key) ? integer(key) : absent; }
  bool boolean(const std::string& key, bool absent) {
    const Json* value = find(key);
    if (value && !value->as<bool>()) reject(key, "expected a bool, got ", describe(*value));
    return value ? *value->as<bool>() : absent;
  }
  // Refuses any other number; absent is as `only`.
  void require(const std::string& key, double only) {
    if (const double found = number(key, only); found != only) unsupported(key, str_cat(found), str_cat(only));
  }

  void set(std::string_view name, Json value) { members_.emplace_back(std::string(name), std::move(value)); }
  // Sets a member to the value of the key.
  void copy(const std::string& key, std::string_view name) {
    const Json* value = find(key);
    if (!value) reject(key, "missing in the file's metadata");
    set(name, scalar(key, *value));
  }
  bool copy_if(const std::string& key, std::string_view name) {
    if (!has(key)) return false;
    copy(key, name);
    return true;
  }

  Json finish() {
    for (const auto& [key, value] : file_.metadata())
      if (key.starts_with(prefix_) && !read_.count(key.substr(prefix_.size())))
        fail(ErrorCode::kUnsupported, key, file_.files()[0].path(), ": the metadata have ", printable(key), ", ", describe(value),
             ", which is not supported and may change what the model computes");
    return {sorted(std::move(members_))};
  }

  static Json::Object sorted(Json::Object members) {
    std::sort(members.begin(), members.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    return members;
  }

  // The file has most numbers as float32. Returns the number with the fewest digits that is this float32: what config.json had.
  static double shortest(double value) {
    if (!std::isfinite(value) || double(float(value)) != value) return value;
    char text[32];
    const auto written = std::to_chars(text, text + sizeof text, float(value));
    double out = value;
    std::from_chars(text, written.ptr, out);
    return out;
  }

 private:
  static bool same(const Json& a, const Json& b) {
    return a.value.index() == b.value.index() &&
           std::visit(
               [&](const auto& first) {
                 using T = std::decay_t<decltype(first)>;
                 if constexpr (std::is_same_v<T, Json::Array> || std::is_same_v<T, Json::Object>)
                   return false;
                 else
                   return first == *b.as<T>();
               },
               a.value);
  }

  // A key may have a list with a value for each layer. Throws kUnsupported where they differ.
  Json scalar(const std::string& key, const Json& value) const {
    const auto* items = value.as<Json::Array>();
    if (items && items->empty()) reject(key, "expected a value, got an empty list");
    const Json& first = items ? items->front() : value;
    if (first.as<Json::Array>() || first.as<Json::Object>()) reject(key, "expected a value, got ", describe(first));
    for (size_t i = 1; items && i < items->size(); ++i)
      if (!same((*items)[i], first))
        unsupported(key, str_cat("with ", describe(first), " and ", describe((*items)[i])), "the same for all layers");
    const auto* real = first.as<double>();
    if (real && !std::isfinite(*real)) reject(key, "expected a finite number, got ", *real);
    return real ? Json{shortest(*real)} : first;
  }

  const GgufFile& file_;
  std::string prefix_;
  std::set<std::string> read_;
  Json::Object members_;
};

// Returns the factors by which a tensor divides the rope's frequencies.
Json factors_of(const ConfigWriter& c, const std::string& name) {
  const TensorInfo* info = c.tensor(name);
  if (!info) c.reject_tensor(name, "missing");
  if (info->dtype != "F32" || info->shape.size() != 1)
    c.reject_tensor(name, "expected one dimension of F32, got shape ", info->shape, " of ", info->dtype);
  Json::Array out(size_t(info->shape[0]));
  for (size_t i = 0; i < out.size(); ++i) {
    float value;
    std::memcpy(&value, info->data + i * sizeof value, sizeof value);
    out[i].value = ConfigWriter::shortest(value);
  }
  return {std::move(out)};
}

// Makes rope_scaling of factors in tensors: one tensor for any length (Llama 3), or one for each side of the original length (longrope).
Json::Object factor_scaling(ConfigWriter& c) {
  const bool by_length = c.tensor("rope_factors_long.weight") || c.tensor("rope_factors_short.weight");
  const Json original = {c.integer("rope.scaling.original_context_length", c.integer("context_length"))};
  const Json mscale = {ConfigWriter::shortest(c.number("rope.scaling.attn_factor", 1))};
  if (!by_length) c.require("rope.scaling.attn_factor", 1);
  return {{"attention_factor", mscale},
          {"factor", {1.0}},
          {"long_factor", factors_of(c, by_length ? "rope_factors_long.weight" : "rope_freqs.weight")},
          {"long_mscale", mscale},
          {"original_max_position_embeddings", original},
          {"rope_type", {std::string("longrope")}},
          {"short_factor", factors_of(c, by_length ? "rope_factors_short.weight" : "rope_freqs.weight")},
          {"short_mscale", mscale}};
}

// Sets rope_theta and rope_scaling. `further`: members of a YaRN's rope_scaling that the architecture has.
void set_rope(ConfigWriter& c, Json::Object further = {}) {
  if (!c.copy_if("rope.freq_base", "rope_theta")) c.set("rope_theta", {10000.0});
  c.boolean("rope.scaling.finetuned", false);  // says how the model was trained
  c.require("rope.scaling.yarn_ext_factor", 1);
  c.require("rope.scaling.yarn_attn_factor", 1);
  const double factor = c.number("rope.scaling.factor", 0);
  const Json* type = c.find("rope.scaling.type");
  const auto* name = type ? type->as<std::string>() : nullptr;
  if (type && !name) c.reject("rope.scaling.type", "expected a string, got ", describe(*type));
  // llama.cpp takes a factor alone as linear.
  const std::string kind = name ? *name : factor != 0 && factor != 1 ? "linear" : "none";
  const bool by_tensor =
      c.tensor("rope_freqs.weight") || c.tensor("rope_factors_long.weight") || c.tensor("rope_factors_short.weight");
  if (by_tensor) {
    if (kind != "none" && kind != "longrope") c.unsupported("rope.scaling.type", quote(kind), "none where the file has factors");
    return c.set("rope_scaling", {factor_scaling(c)});
  }
  c.require("rope.scaling.attn_factor", 1);
  const Json* original = c.find("rope.scaling.original_context_length");
  if (kind == "none" || factor == 1) return c.set("rope_scaling", {Json::Object{{"rope_type", {std::string("default")}}}});
  if (kind != "linear" && kind != "yarn") c.unsupported("rope.scaling.type", quote(kind), "none, linear, yarn");
  Json::Object scaling;
  if (kind == "yarn") scaling = std::move(further);
  scaling.emplace_back("rope_type", Json{kind});
  scaling.emplace_back("factor", Json{factor});
  if (kind == "yarn") {
    if (original) scaling.emplace_back("original_max_position_embeddings", *original);
    scaling.emplace_back("beta_fast", Json{c.number("rope.scaling.yarn_beta_fast", 32)});
    scaling.emplace_back("beta_slow", Json{c.number("rope.scaling.yarn_beta_slow", 1)});
  }
  c.set("rope_scaling", {ConfigWriter::sorted(std::move(scaling))});
}

enum Gating : int64_t { kUnstated, kSoftmax, kSigmoid, kSoftmaxOfChosen };  // of expert_gating_func

void require_gating(ConfigWriter& c, Gating only) {
  if (const int64_t found = c.integer("expert_gating_func", only); found != only && found != kUnstated)
    c.unsupported("expert_gating_func", str_cat(found), str_cat(int64_t(only)));
}

// Sets the number of experts, k and I. `width`: the key of I.
void set_experts(ConfigWriter& c, std::string_view width, Gating gating, std::string_view count = "num_experts") {
  c.set(count, {c.integer("expert_count")});
  c.check_experts(c.integer("expert_count"));
  c.copy("expert_used_count", "num_experts_per_tok");
  // Older files state the width of experts as the width of the layer.
  if (!c.copy_if("expert_feed_forward_length", width)) c.copy("feed_forward_length", width);
  require_gating(c, gating);
}

// Refuses keys of routers that the architecture does not have.
void require_plain_router(ConfigWriter& c, bool normalized) {
  if (c.boolean("expert_weights_norm", normalized) != normalized)
    c.unsupported("expert_weights_norm", normalized ? "false" : "true", normalized ? "true" : "false");
  if (c.number("expert_weights_scale", 0) != 0) c.require("expert_weights_scale", 1);
  for (const char* key : {"expert_group_count", "expert_group_used_count"})
    if (c.integer(key, 0) > 1) c.unsupported(key, str_cat(c.integer(key)), "1");
}

// Sets what all architectures with usual attention have. `partial`: whether a part of each head may be rotated.
void set_heads(ConfigWriter& c, bool partial = false) {
  const int64_t heads = c.integer("attention.head_count"), hidden = c.integer("embedding_length");
  const int64_t size = c.integer("attention.key_length", heads > 0 ? hidden / heads : 0);
  c.set("head_dim", {size});
  c.copy_if("attention.head_count_kv", "num_key_value_heads");
  if (const int64_t v = c.integer("attention.value_length", size); v != size)
    c.unsupported("attention.value_length", str_cat(v), str_cat(size, " as attention.key_length"));
  const int64_t rotated = c.integer("rope.dimension_count", size);
  if (partial && size > 0) {
    c.set("partial_rotary_factor", {double(rotated) / double(size)});
  } else if (rotated != size) {
    c.unsupported("rope.dimension_count", str_cat(rotated), str_cat(size));
  }
}

// A window that holds the whole context is none.
void require_no_window(ConfigWriter& c) {
  if (const int64_t window = c.integer("attention.sliding_window", 0); window > 0 && window < c.integer("context_length"))
    c.unsupported("attention.sliding_window", str_cat(window), "none");
}

bool has_bias(const ConfigWriter& c, const char* tensor) { return c.tensor(str_cat("blk.0.", tensor, ".bias")) != nullptr; }

void write_llama(ConfigWriter& c) {
  set_heads(c);
  set_rope(c);
  require_no_window(c);
  // The converter orders the rows of q and k so that columns (2 i, 2 i + 1) of a head are rotated together.
  c.set("rope_interleave", {true});
  c.find("tensor_data_layout");  // of 2023: the same order
  c.copy("feed_forward_length", "intermediate_size");
  if (c.integer("expert_count", 0) > 0) {
    c.set("model_type", {std::string("mixtral")});
    set_experts(c, "intermediate_size", kSoftmax, "num_local_experts");
    return require_plain_router(c, true);
  }
  c.set("model_type", {std::string("llama")});
  c.integer("expert_used_count", 0);
  c.set("attention_bias", {has_bias(c, "attn_q")});
  c.set("mlp_bias", {has_bias(c, "ffn_gate")});
}

void write_qwen_dense(ConfigWriter& c, const char* model_type) {
  c.set("model_type", {std::string(model_type)});
  set_heads(c);
  set_rope(c);
  require_no_window(c);
  c.copy("feed_forward_length", "intermediate_size");
}

void write_qwen_moe(ConfigWriter& c, bool qwen3) {
  c.set("model_type", {std::string(qwen3 ? "qwen3_moe" : "qwen2_moe")});
  set_heads(c);
  set_rope(c);
  require_no_window(c);
  set_experts(c, "moe_intermediate_size", kSoftmax);
  require_plain_router(c, qwen3);
  c.set("norm_topk_prob", {qwen3});  // what llama.cpp computes: the file does not say
  c.copy_if("feed_forward_length", "intermediate_size");
  if (qwen3) {
    c.integer("expert_shared_feed_forward_length", 0);  // an unused key of Qwen2's
    c.set("attention_bias", {has_bias(c, "attn_q")});
  } else if (!c.copy_if("expert_shared_feed_forward_length", "shared_expert_intermediate_size")) {
    c.copy("feed_forward_length", "shared_expert_intermediate_size");
  }
}

void write_olmoe(ConfigWriter& c) {
  c.set("model_type", {std::string("olmoe")});
  set_heads(c);
  set_rope(c);
  set_experts(c, "intermediate_size", kSoftmax);
  c.integer("feed_forward_length", 0);
  require_plain_router(c, false);
  c.set("norm_topk_prob", {false});
  if (c.number("attention.clamp_kqv", 0) > 0) c.copy("attention.clamp_kqv", "clip_qkv");
}

void write_phimoe(ConfigWriter& c) {
  c.set("model_type", {std::string("phimoe")});
  set_heads(c);
  set_rope(c);
  set_experts(c, "intermediate_size", kSoftmax, "num_local_experts");
  c.integer("feed_forward_length", 0);
  require_plain_router(c, true);
  c.set("attention_bias", {has_bias(c, "attn_q")});
  c.set("lm_head_bias", {c.tensor("output.bias") != nullptr});
  if (const int64_t window = c.integer("attention.sliding_window", 0); window > 0) c.set("sliding_window", {window});
}

void write_gpt_oss(ConfigWriter& c) {
  c.set("model_type", {std::string("gpt_oss")});
  set_heads(c);
  // The model's YaRN does not round the ends of its ramp; the file does not say so.
  set_rope(c, {{"truncate", {false}}});
  set_experts(c, "intermediate_size", kSoftmaxOfChosen, "num_local_experts");
  c.integer("feed_forward_length", 0);
  require_plain_router(c, true);
  c.copy("attention.sliding_window", "sliding_window");  // of every second layer, from the first on
}

// Sets the keys of DeepSeek's experts, which GLM has adopted.
void set_deepseek_experts(ConfigWriter& c, Gating gating) {
  set_experts(c, "moe_intermediate_size", gating, "n_routed_experts");
  c.copy_if("feed_forward_length", "intermediate_size");
  c.set("n_shared_experts", {c.integer("expert_shared_count", 0)});
  c.set("first_k_dense_replace", {c.integer("leading_dense_block_count", 0)});
  const double scale = c.number("expert_weights_scale", 0);
  c.set("routed_scaling_factor", {scale == 0 ? 1.0 : scale});
  c.set("norm_topk_prob", {c.boolean("expert_weights_norm", false)});
  c.set("n_group", {std::max<int64_t>(1, c.integer("expert_group_count", 1))});
  c.set("topk_group", {std::max<int64_t>(1, c.integer("expert_group_used_count", 1))});
}

void write_deepseek2(ConfigWriter& c) {
  const bool sigmoid = c.integer("expert_gating_func", kSoftmax) == kSigmoid;
  c.set("model_type", {std::string(sigmoid ? "deepseek_v3" : "deepseek_v2")});
  set_deepseek_experts(c, sigmoid ? kSigmoid : kSoftmax);
  if (!sigmoid && c.integer("expert_group_count", 1) > 1) c.set("topk_method", {std::string("group_limited_greedy")});
  // Files before 2025-04 have the sizes of a head where newer ones have those of the latent.
  const int64_t rotated = c.integer("rope.dimension_count"), key = c.integer("attention.key_length"),
                value = c.integer("attention.value_length");
  c.set("qk_nope_head_dim", {c.integer("attention.key_length_mla", key) - rotated});
  c.set("qk_rope_head_dim", {rotated});
  c.set("v_head_dim", {c.integer("attention.value_length_mla", value)});
  c.copy("attention.kv_lora_rank", "kv_lora_rank");
  if (c.integer("attention.q_lora_rank", 0) > 0) c.copy("attention.q_lora_rank", "q_lora_rank");
  c.integer("attention.head_count_kv", 0);  // 1 where the file has the latent's sizes
  // The converter writes a tenth of mscale_all_dim, which mscale equals in these models.
  const double mscale = ConfigWriter::shortest(double(float(10 * c.number("rope.scaling.yarn_log_multiplier", 0))));
  set_rope(c, {{"mscale", {mscale}}, {"mscale_all_dim", {mscale}}});
}

void write_glm4moe(ConfigWriter& c) {
  c.set("model_type", {std::string("glm4_moe")});
  set_heads(c, true);
  set_rope(c);
  set_deepseek_experts(c, kSigmoid);
  c.set("use_qk_norm", {c.tensor("blk.0.attn_q_norm.weight") != nullptr});
  c.set("attention_bias", {has_bias(c, "attn_q")});
}

void write_architecture(ConfigWriter& c, std::string_view name) {
  if (name == "llama") return write_llama(c);
  if (name == "qwen2" || name == "qwen3") return write_qwen_dense(c, name == "qwen2" ? "qwen2" : "qwen3");
  if (name == "qwen2moe" || name == "qwen3moe") return write_qwen_moe(c, name == "qwen3moe");
  if (name == "olmoe") return write_olmoe(c);
  if (name == "phimoe") return write_phimoe(c);
  if (name == "gpt-oss") return write_gpt_oss(c);
  if (name == "deepseek2") return write_deepseek2(c);
  if (name == "glm4moe") return write_glm4moe(c);
  fail(ErrorCode::kInternal, "general.architecture", "no keys are written for ", name);
}

// Returns the dtype of matrices and of what is decoded: bfloat16 where any tensor has blocks, else that of most bytes of matrices.
std::string dtype_of(const GgufFile& file) {
  int64_t bytes[3] = {};
  constexpr std::string_view kTypes[] = {"BF16", "F16", "F32"};
  for (const auto& [name, info] : file.tensors()) {
    const auto* type = std::find(std::begin(kTypes), std::end(kTypes), info.dtype);
    if (type == std::end(kTypes)) return "bfloat16";
    if (info.shape.size() > 1) bytes[type - kTypes] += info.bytes;
  }
  constexpr const char* kNames[] = {"bfloat16", "float16", "float32"};
  return kNames[std::max_element(bytes, bytes + 3) - bytes];
}

}  // namespace

Json gguf_config(const GgufFile& file) {
  ConfigWriter c(file);
  c.set("dtype", {dtype_of(file)});
  c.set("tie_word_embeddings", {c.tensor("output.weight") == nullptr});
  c.copy("embedding_length", "hidden_size");
  c.copy("attention.head_count", "num_attention_heads");
  c.copy("attention.layer_norm_rms_epsilon", "rms_norm_eps");
  c.copy("context_length", "max_position_embeddings");
  // Layers that predict further tokens are counted as blocks.
  const int64_t layers = c.integer("block_count") - c.integer("nextn_predict_layers", 0);
  if (layers <= 0) c.reject("block_count", "expected more than nextn_predict_layers, got ", c.integer("block_count"));
  c.set("num_hidden_layers", {layers});
  const TensorInfo* embedding = c.tensor("token_embd.weight");
  if (!embedding) c.reject_tensor("token_embd.weight", "missing");
  if (embedding->shape.size() != 2) c.reject_tensor("token_embd.weight", "expected two dimensions, got shape ", embedding->shape);
  c.set("vocab_size", {embedding->shape[0]});
  c.integer("vocab_size", 0);  // of the tokenizer
  if (!c.boolean("attention.causal", true)) c.unsupported("attention.causal", "false", "true");
  if (c.boolean("use_parallel_residual", false)) c.unsupported("use_parallel_residual", "true", "false");
  Json::Array ends;
  for (const char* name : {"eos", "eot", "eom"})
    if (const Json* id = file.find(str_cat("tokenizer.ggml.", name, "_token_id")); id && id->as<int64_t>())
      if (std::none_of(ends.begin(), ends.end(), [&](const Json& e) { return *e.as<int64_t>() == *id->as<int64_t>(); }))
        ends.push_back(*id);
  if (!ends.empty()) c.set("eos_token_id", {std::move(ends)});
  write_architecture(c, architecture_of(file).name);
  return c.finish();
}

}  // namespace lynx_rt
