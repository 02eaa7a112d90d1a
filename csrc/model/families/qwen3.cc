// Qwen3 (dense) and Qwen3-MoE. Keys and names: transformers' qwen3 / qwen3_moe configuration and the hub's checkpoints, which
// name one tensor per expert; transformers 5 can also write fused experts (gate_up_proj [E, 2I, H], down_proj [E, H, I]).
#include <algorithm>

#include "model/family.h"

namespace lynx_rt {

namespace {

constexpr int64_t kMaxDim = 1 << 24;  // any single size of a model; keeps products of three within int64
constexpr int64_t kMaxLayers = 1 << 14;
constexpr int64_t kMaxExperts = 1 << 17;  // of all layers together: bounds what an absurd config can make us allocate

// Default rope only; other kinds change every position's angles and must not be ignored.
void read_rope(const ConfigReader& config, ModelConfig& m) {
  std::optional<ConfigReader> rope = config.object("rope_parameters");  // transformers 5
  std::optional<ConfigReader> scaling = config.object("rope_scaling");  // older
  for (const auto& r : {rope, scaling}) {
    if (!r) continue;
    std::string type = r->string_or("rope_type", r->string_or("type", "default"));
    if (type != "default")
      fail(ErrorCode::kUnsupported, "rope_type", r->name(), ": rope_type \"", type, "\" is not supported; supported: default");
    if (r->number_or("partial_rotary_factor", 1.0, 0.0, 1.0) != 1.0)
      fail(ErrorCode::kUnsupported, "partial_rotary_factor", r->name(), ": only partial_rotary_factor 1 is supported");
  }
  const ConfigReader& from = rope && rope->has("rope_theta") ? *rope : config;
  m.rope_theta = float(from.number_or("rope_theta", 10000.0, 1.0, 1e12));
}

ModelConfig read_common(const ConfigReader& c) {
  ModelConfig m;
  m.model_type = c.string("model_type");
  m.hidden_size = c.integer("hidden_size", 1, kMaxDim);
  m.num_layers = c.integer("num_hidden_layers", 1, kMaxLayers);
  m.num_heads = c.integer("num_attention_heads", 1, kMaxDim);
  m.num_kv_heads = c.integer_or("num_key_value_heads", m.num_heads, 1, m.num_heads);
  if (m.num_heads % m.num_kv_heads != 0)
    c.fail_key("num_key_value_heads",
               str_cat("expected a divisor of num_attention_heads ", m.num_heads, ", got ", m.num_kv_heads));
  if (!c.has("head_dim") && m.hidden_size % m.num_heads != 0)
    c.fail_key("num_attention_heads",
               str_cat("expected a divisor of hidden_size ", m.hidden_size, " where head_dim is absent, got ", m.num_heads));
  m.head_dim = c.integer_or("head_dim", m.hidden_size / m.num_heads, 1, 1 << 16);
  if (m.head_dim % 2 != 0) c.fail_key("head_dim", str_cat("expected an even number, got ", m.head_dim));
  m.intermediate_size = c.integer_or("intermediate_size", 0, 1, kMaxDim);
  m.vocab_size = c.integer("vocab_size", 1, kMaxDim);
  m.max_position_embeddings = c.integer_or("max_position_embeddings", 32768, 1, 1 << 28);
  m.rms_norm_eps = float(c.number_or("rms_norm_eps", 1e-6, 0.0, 1.0));
  m.attention_bias = c.boolean_or("attention_bias", false);
  m.tie_word_embeddings = c.boolean_or("tie_word_embeddings", false);
  m.qk_norm = true;
  m.dtype = read_config_dtype(c);
  for (int64_t id : c.integer_or_list("eos_token_id", 0, m.vocab_size - 1)) m.eos_token_ids.push_back(int32_t(id));
  m.moe_layer.assign(size_t(m.num_layers), false);
  read_rope(c, m);
  std::string act = c.string_or("hidden_act", "silu");
  if (act != "silu")
    fail(ErrorCode::kUnsupported, "hidden_act", c.name(), ": hidden_act \"", act, "\" is not supported; supported: silu");
  if (c.boolean_or("use_sliding_window", false) && c.has("sliding_window"))
    fail(ErrorCode::kUnsupported, "use_sliding_window", c.name(),
         ": use_sliding_window: sliding window attention is not supported");
  if (c.has("quantization_config"))
    fail(ErrorCode::kUnsupported, "quantization_config", c.name(),
         ": quantization_config: quantised checkpoints are not supported; use the bf16, f16 or f32 one");
  return m;
}

ModelConfig read_dense(const ConfigReader& c) {
  ModelConfig m = read_common(c);
  c.integer("intermediate_size", 1, kMaxDim);
  return m;
}

ModelConfig read_moe(const ConfigReader& c) {
  ModelConfig m = read_common(c);
  m.num_experts = c.integer(c.first_of({"num_experts", "num_local_experts"}), 1, 1 << 16);
  m.num_experts_per_tok = c.integer("num_experts_per_tok", 1, m.num_experts);
  m.moe_intermediate_size = c.integer("moe_intermediate_size", 1, kMaxDim);
  if (m.num_layers * m.num_experts > kMaxExperts)
    c.fail_key("num_experts", str_cat("num_hidden_layers * num_experts = ", m.num_layers * m.num_experts,
                                      " is over the limit of ", kMaxExperts));
  m.norm_topk_prob = c.boolean_or("norm_topk_prob", false);
  int64_t sparse_step = c.integer_or("decoder_sparse_step", 1, 1, kMaxLayers);
  std::vector<int64_t> dense = c.integers_or("mlp_only_layers", {}, 0, kMaxLayers);
  for (int64_t l = 0; l < m.num_layers; ++l)
    m.moe_layer[size_t(l)] = (l + 1) % sparse_step == 0 && std::find(dense.begin(), dense.end(), l) == dense.end();
  if (std::find(m.moe_layer.begin(), m.moe_layer.end(), false) != m.moe_layer.end()) c.integer("intermediate_size", 1, kMaxDim);
  return m;
}

void add_mlp(std::vector<TensorSpec>& specs, const std::string& prefix, int64_t hidden, int64_t width, ExpertWeights& w) {
  specs.push_back(whole_tensor(prefix + "gate_proj.weight", {width, hidden}, &w.gate));
  specs.push_back(whole_tensor(prefix + "up_proj.weight", {width, hidden}, &w.up));
  specs.push_back(whole_tensor(prefix + "down_proj.weight", {hidden, width}, &w.down));
}

void add_experts(std::vector<TensorSpec>& specs, const std::string& prefix, const ModelConfig& m, const Checkpoint& checkpoint,
                 std::vector<ExpertWeights>& experts) {
  int64_t count = m.num_experts, width = m.moe_intermediate_size, hidden = m.hidden_size;
  experts.resize(size_t(count));
  if (!checkpoint.has(prefix + "gate_up_proj")) {
    for (int64_t e = 0; e < count; ++e) add_mlp(specs, prefix + std::to_string(e) + ".", hidden, width, experts[size_t(e)]);
    return;
  }
  TensorSpec gate_up{prefix + "gate_up_proj", {count, 2 * width, hidden}, {}},
      down{prefix + "down_proj", {count, hidden, width}, {}};
  for (int64_t e = 0; e < count; ++e) {
    ExpertWeights& w = experts[size_t(e)];
    gate_up.pieces.push_back({&w.gate, e * 2 * width, width});
    gate_up.pieces.push_back({&w.up, e * 2 * width + width, width});
    down.pieces.push_back({&w.down, e * hidden, hidden});
  }
  specs.push_back(std::move(gate_up));
  specs.push_back(std::move(down));
}

std::vector<TensorSpec> specs(const ModelConfig& m, const Checkpoint& checkpoint, ModelWeights& weights) {
  std::vector<TensorSpec> out;
  int64_t h = m.hidden_size, q = m.num_heads * m.head_dim, kv = m.num_kv_heads * m.head_dim;
  out.push_back(whole_tensor("model.embed_tokens.weight", {m.vocab_size, h}, &weights.embed));
  out.push_back(whole_tensor("model.norm.weight", {h}, &weights.final_norm));
  if (!m.tie_word_embeddings) out.push_back(whole_tensor("lm_head.weight", {m.vocab_size, h}, &weights.lm_head));
  for (int64_t l = 0; l < m.num_layers; ++l) {
    LayerWeights& w = weights.layers[size_t(l)];
    std::string layer = "model.layers." + std::to_string(l) + ".", attn = layer + "self_attn.";
    out.push_back(whole_tensor(layer + "input_layernorm.weight", {h}, &w.input_norm));
    out.push_back(whole_tensor(layer + "post_attention_layernorm.weight", {h}, &w.post_attention_norm));
    out.push_back(whole_tensor(attn + "q_proj.weight", {q, h}, &w.q_proj));
    out.push_back(whole_tensor(attn + "k_proj.weight", {kv, h}, &w.k_proj));
    out.push_back(whole_tensor(attn + "v_proj.weight", {kv, h}, &w.v_proj));
    out.push_back(whole_tensor(attn + "o_proj.weight", {h, q}, &w.o_proj));
    out.push_back(whole_tensor(attn + "q_norm.weight", {m.head_dim}, &w.q_norm));
    out.push_back(whole_tensor(attn + "k_norm.weight", {m.head_dim}, &w.k_norm));
    if (m.attention_bias) {
      out.push_back(whole_tensor(attn + "q_proj.bias", {q}, &w.q_bias));
      out.push_back(whole_tensor(attn + "k_proj.bias", {kv}, &w.k_bias));
      out.push_back(whole_tensor(attn + "v_proj.bias", {kv}, &w.v_bias));
      out.push_back(whole_tensor(attn + "o_proj.bias", {h}, &w.o_bias));
    }
    if (m.moe_layer[size_t(l)]) {
      out.push_back(whole_tensor(layer + "mlp.gate.weight", {m.num_experts, h}, &w.router));
      add_experts(out, layer + "mlp.experts.", m, checkpoint, w.experts);
    } else {
      add_mlp(out, layer + "mlp.", h, m.intermediate_size, w.mlp);
    }
  }
  return out;
}

}  // namespace

const Family& qwen3_family() {
  static const Family family{"qwen3", read_dense, specs, {"*.rotary_emb.inv_freq"}};
  return family;
}

const Family& qwen3_moe_family() {
  static const Family family{"qwen3_moe", read_moe, specs, {"*.rotary_emb.inv_freq"}};
  return family;
}

}  // namespace lynx_rt
