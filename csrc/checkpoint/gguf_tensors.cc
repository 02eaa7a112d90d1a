#include <algorithm>
#include <charconv>
#include <utility>

#include "base/error.h"
#include "checkpoint/gguf_model.h"

namespace lynx_rt {

namespace {

using Renaming = std::pair<std::string_view, std::string_view>;

constexpr Renaming kDeltaNames[] = {
    {"attn_qkv.", "linear_attn.in_proj_qkv."},
    {"attn_gate.", "linear_attn.in_proj_z."},
    {"ssm_alpha.", "linear_attn.in_proj_a."},
    {"ssm_beta.", "linear_attn.in_proj_b."},
    {"ssm_ba.", "linear_attn.in_proj_ba."},
    {"ssm_in.", "linear_attn.in_proj_qkvz."},  // Qwen3-Next's files of 2025
    {"ssm_conv1d.", "linear_attn.conv1d."},
    {"ssm_dt.bias", "linear_attn.dt_bias"},
    {"ssm_a", "linear_attn.A"},  // -exp(A_log)
    {"ssm_norm.", "linear_attn.norm."},
    {"ssm_out.", "linear_attn.out_proj."},
};
constexpr Renaming kGemmaNames[] = {
    {"ffn_norm.", "pre_feedforward_layernorm."},
    {"post_ffw_norm.", "post_feedforward_layernorm."},
    {"post_ffw_norm_1.", "post_feedforward_layernorm_1."},
    {"pre_ffw_norm_2.", "pre_feedforward_layernorm_2."},
    {"post_ffw_norm_2.", "post_feedforward_layernorm_2."},
    {"layer_output_scale.weight", "layer_scalar"},
    {"ffn_gate_inp.scale", "router.scale"},
    {"ffn_down_exps.scale", "router.per_expert_scale"},
};

constexpr GgufArchitecture kArchitectures[] = {
    {.name = "llama"},
    {.name = "qwen2"},
    {.name = "qwen3"},
    {.name = "qwen2moe"},
    {.name = "qwen3moe"},
    {.name = "olmoe"},
    {.name = "phimoe", .block = "block_sparse_moe.", .experts = {"w1.", "w3.", "w2."}},
    {.name = "gpt-oss", .router = "router."},
    {.name = "deepseek2", .shared_expert = "shared_experts."},
    {.name = "glm4moe", .shared_expert = "shared_experts."},
    {.name = "qwen3next", .names = kDeltaNames},
    {.name = "qwen35", .names = kDeltaNames},
    {.name = "qwen35moe", .names = kDeltaNames},
    {.name = "gemma4", .block = "", .router = "router.proj.", .names = kGemmaNames},
};
constexpr GgufArchitecture kMixtral{.name = "llama", .block = "block_sparse_moe.", .experts = {"w1.", "w3.", "w2."}};

// Names of a layer's tensors, after "blk.N.", and what they are after "model.layers.N.".
constexpr Renaming kLayerNames[] = {
    {"attn_norm.", "input_layernorm."},
    {"ffn_norm.", "post_attention_layernorm."},
    {"post_attention_norm.", "post_attention_layernorm."},
    {"attn_q.", "self_attn.q_proj."},
    {"attn_k.", "self_attn.k_proj."},
    {"attn_v.", "self_attn.v_proj."},
    {"attn_output.", "self_attn.o_proj."},
    {"attn_q_norm.", "self_attn.q_norm."},
    {"attn_k_norm.", "self_attn.k_norm."},
    {"attn_sinks.weight", "self_attn.sinks"},
    {"attn_q_a.", "self_attn.q_a_proj."},
    {"attn_q_a_norm.", "self_attn.q_a_layernorm."},
    {"attn_q_b.", "self_attn.q_b_proj."},
    {"attn_kv_a_mqa.", "self_attn.kv_a_proj_with_mqa."},
    {"attn_kv_a_norm.", "self_attn.kv_a_layernorm."},
    {"attn_kv_b.", "self_attn.kv_b_proj."},
    {"attn_k_b.", "self_attn.k_b_proj."},
    {"attn_v_b.", "self_attn.v_b_proj."},
    {"ffn_gate.", "mlp.gate_proj."},
    {"ffn_up.", "mlp.up_proj."},
    {"ffn_down.", "mlp.down_proj."},
    {"nextn.", ""},  // of a layer that predicts further tokens, which is left out
};
// Parts of a layer whose names depend on the architecture.
constexpr std::string_view kParts[] = {"ffn_gate", "ffn_up", "ffn_down"};
constexpr Renaming kModelNames[] = {
    {"token_embd.", "model.embed_tokens."}, {"output_norm.", "model.norm."}, {"output.", "lm_head."}};
// Factors of rope frequencies, which gguf_config() reads.
constexpr std::string_view kFactors[] = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"};

// Returns the name with the part in front replaced, empty where it has none of them.
std::string renamed(std::string_view name, std::span<const Renaming> table) {
  for (const auto& [from, to] : table)
    if (name.starts_with(from)) return str_cat(to, name.substr(from.size()));
  return "";
}

// Reads a number at the begin of the text and takes it off, together with the point after it; -1 where there is none.
int64_t take_number(std::string_view& text) {
  int64_t number = -1;
  const char* const end = text.data() + text.size();
  const auto [after, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || number < 0 || after == end || *after != '.') return -1;
  text.remove_prefix(size_t(after - text.data()) + 1);
  return number;
}

// Tensors by their names in a Hugging Face checkpoint.
class TensorsByName {
 public:
  explicit TensorsByName(const GgufFile& file) : file_(file) {}

  // `from`: the tensor's name in the file. Throws kCorruptFile where another tensor has the name `to` already.
  void add(std::string_view from, const std::string& to, const TensorInfo& info) {
    if (!tensors_.emplace(to, info).second)
      fail(ErrorCode::kCorruptFile, std::string(from), file_.files()[size_t(info.file)].path(), ": tensor ", quote(from),
           ": another tensor of the file is ", to, " already");
  }
  std::map<std::string, TensorInfo> take() { return std::move(tensors_); }

 private:
  const GgufFile& file_;
  std::map<std::string, TensorInfo> tensors_;
};

constexpr int64_t kMaxExperts = 1 << 16;  // of a layer: more would be an absurd shape

// Renames the tensors of one layer.
class LayerTensors {
 public:
  LayerTensors(const GgufFile& file, const GgufArchitecture& architecture, int64_t layer, TensorsByName& out)
      : a_(architecture),
        layer_(str_cat("model.layers.", layer, ".")),
        experts_(str_cat(layer_, a_.block, "experts.")),
        out_(out) {
    fused_ = file.tensors().count(str_cat("blk.", layer, ".ffn_gate_up_exps.weight")) > 0;
  }

  // `rest`: the name after "blk.N.".
  void add(const std::string& name, std::string_view rest, const TensorInfo& info) {
    const std::string special = renamed(rest, a_.names);
    if (special.empty() && add_expert_tensor(name, rest, info)) return;
    TensorInfo one = info;
    // The gate of a shared expert is a vector in the file and a matrix of one row in transformers.
    if (rest == "ffn_gate_inp_shexp.weight" && one.shape.size() == 1) one.shape.insert(one.shape.begin(), 1);
    // The convolution's one input channel has no dimension in the file.
    if (rest == "ssm_conv1d.weight" && one.shape.size() == 2) one.shape.insert(one.shape.begin() + 1, 1);
    const std::string own = special.empty() ? own_name(rest) : special;
    out_.add(name, own.empty() ? name : layer_ + own, one);
  }

 private:
  std::string own_name(std::string_view rest) const {
    const Renaming of_block[] = {{"ffn_gate_inp.", a_.router}, {"exp_probs_b.bias", "gate.e_score_correction_bias"}};
    if (const std::string own = renamed(rest, of_block); !own.empty()) return str_cat(a_.block, own);
    if (rest.starts_with("ffn_gate_inp_shexp.")) return str_cat(a_.block, "shared_expert_gate.", rest.substr(19));
    for (size_t i = 0; i < 3; ++i)
      if (const std::string from = str_cat(kParts[i], "_shexp."); rest.starts_with(from))
        return str_cat(a_.block, a_.shared_expert, kMlp[i], rest.substr(from.size()));
    return renamed(rest, kLayerNames);
  }

  // Returns whether the tensor is one of experts.
  bool add_expert_tensor(const std::string& name, std::string_view rest, const TensorInfo& info) {
    if (fused_ && (rest == "ffn_gate_up_exps.weight" || rest == "ffn_down_exps.weight")) {
      out_.add(name, experts_ + (rest.starts_with("ffn_down") ? "down_proj" : "gate_up_proj"), info);
      return true;
    }
    for (size_t i = 0; i < 3; ++i) {
      if (!rest.starts_with(kParts[i])) continue;
      std::string_view after = rest.substr(kParts[i].size());
      if (after.starts_with("_exps.")) return split(name, info, i, after.substr(6));
      // Mixtral's first files have a tensor for each expert: "ffn_gate.0.weight".
      if (after.starts_with(".")) {
        after.remove_prefix(1);
        if (const int64_t e = take_number(after); e >= 0) {
          out_.add(name, str_cat(experts_, e, ".", a_.experts[i], after), info);
          return true;
        }
      }
    }
    return false;
  }

  // Makes one tensor for each expert: [E, rows, cols] becomes E matrices, [E, cols] E vectors.
  bool split(const std::string& name, const TensorInfo& info, size_t part, std::string_view suffix) {
    const size_t dims = suffix == "weight" ? 3 : suffix == "bias" ? 2 : 0;
    if (info.shape.size() != dims || info.bytes == 0 || info.shape[0] > kMaxExperts) return false;
    TensorInfo expert = info;
    expert.shape.erase(expert.shape.begin());
    expert.bytes /= info.shape[0];
    for (int64_t e = 0; e < info.shape[0]; ++e) {
      out_.add(name, str_cat(experts_, e, ".", a_.experts[part], suffix), expert);
      expert.data += expert.bytes;
    }
    return true;
  }

  static constexpr std::string_view kMlp[] = {"gate_proj.", "up_proj.", "down_proj."};

  const GgufArchitecture& a_;
  std::string layer_, experts_;
  bool fused_;
  TensorsByName& out_;
};

bool has_experts(const GgufFile& file) {
  const Json* count = file.find("llama.expert_count");
  const auto* number = count ? count->as<int64_t>() : nullptr;
  return number && *number > 0;
}

}  // namespace

const GgufArchitecture& architecture_of(const GgufFile& file) {
  const auto text = [&](const std::string& key, const char* fallback) {
    const Json* value = file.find(key);
    const auto* string = value ? value->as<std::string>() : nullptr;
    if (!string && (value || !fallback))
      fail(ErrorCode::kCorruptFile, key, file.files()[0].path(), ": ", key, ": expected a string, got ",
           value ? describe(*value) : "nothing");
    return string ? *string : fallback;
  };
  if (const std::string type = text("general.type", "model"); type != "model")
    fail(ErrorCode::kUnsupported, "general.type", file.files()[0].path(), ": general.type is ", quote(type),
         ": this file is a part of a model or an addition to one; expected \"model\"");
  const std::string name = text("general.architecture", nullptr);
  for (const GgufArchitecture& a : kArchitectures)
    if (a.name == name) return name == "llama" && has_experts(file) ? kMixtral : a;
  fail(ErrorCode::kUnsupported, "general.architecture", file.files()[0].path(), ": general.architecture ", quote(name),
       " is not supported in GGUF; supported: ", joined(kArchitectures, [](const GgufArchitecture& a) { return a.name; }));
}

std::map<std::string, TensorInfo> gguf_tensors(const GgufFile& file) {
  const GgufArchitecture& a = architecture_of(file);
  TensorsByName out(file);
  for (const auto& [name, info] : file.tensors()) {
    constexpr std::string_view kLayer = "blk.";
    std::string_view rest = name;
    if (std::find(std::begin(kFactors), std::end(kFactors), rest) != std::end(kFactors)) continue;
    if (rest.starts_with(kLayer)) {
      rest.remove_prefix(kLayer.size());
      if (const int64_t layer = take_number(rest); layer >= 0) {
        LayerTensors(file, a, layer, out).add(name, rest, info);
        continue;
      }
    }
    const std::string own = renamed(name, kModelNames);
    out.add(name, own.empty() ? name : own, info);
  }
  return out.take();
}

}  // namespace lynx_rt
