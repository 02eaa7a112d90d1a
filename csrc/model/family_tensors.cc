#include "model/family_tensors.h"

namespace lynx_rt {

void WeightTable::add_model() {
  const int64_t h = m.hidden_size;
  add(prefix_ + "model.embed_tokens.weight", {m.vocab_size, h}, &weights_.embed);
  add(prefix_ + "model.norm.weight", {h}, &weights_.final_norm);
  if (m.norm == NormKind::kLayer) add(prefix_ + "model.norm.bias", {h}, &weights_.final_norm_bias);
  if (!m.tie_word_embeddings) add(prefix_ + "lm_head.weight", {m.vocab_size, h}, &weights_.lm_head);
  if (m.lm_head_bias) add(prefix_ + "lm_head.bias", {m.vocab_size}, &weights_.lm_head_bias);
}

void WeightTable::add_norms(int64_t l) {
  const std::string name = layer_name(l);
  LayerWeights& w = layer(l);
  add(name + "input_layernorm.weight", {m.hidden_size}, &w.input_norm);
  add(name + "post_attention_layernorm.weight", {m.hidden_size}, &w.post_attention_norm);
  if (m.norm == NormKind::kRms) return;
  add(name + "input_layernorm.bias", {m.hidden_size}, &w.input_norm_bias);
  add(name + "post_attention_layernorm.bias", {m.hidden_size}, &w.post_attention_norm_bias);
}

void WeightTable::add_attention(int64_t l, const char* q_norm, const char* k_norm) {
  const int64_t h = m.hidden_size, q = m.num_heads * m.head_dim, kv = m.num_kv_heads * m.head_dim;
  const std::string name = layer_name(l) + "self_attn.";
  LayerWeights& w = layer(l);
  add(name + "q_proj.weight", {q, h}, &w.q_proj);
  add(name + "k_proj.weight", {kv, h}, &w.k_proj);
  add(name + "v_proj.weight", {kv, h}, &w.v_proj);
  add(name + "o_proj.weight", {h, q}, &w.o_proj);
  if (m.attention_bias) {
    add(name + "q_proj.bias", {q}, &w.q_bias);
    add(name + "k_proj.bias", {kv}, &w.k_bias);
    add(name + "v_proj.bias", {kv}, &w.v_bias);
  }
  if (m.output_bias) add(name + "o_proj.bias", {h}, &w.o_bias);
  if (m.sinks) add(name + "sinks", {m.num_heads}, &w.sinks);
  if (m.qk_norm == QkNorm::kNone || m.qk_norm == QkNorm::kUnitAfterRope) return;
  const bool width = m.qk_norm == QkNorm::kWidth;
  add(name + q_norm + ".weight", {width ? q : m.head_dim}, &w.q_norm);
  add(name + k_norm + ".weight", {width ? kv : m.head_dim}, &w.k_norm);
}

void WeightTable::add_mlp(const std::string& prefix, int64_t width, ExpertWeights& w, bool bias, const MlpNames& names) {
  const int64_t h = m.hidden_size;
  add(prefix + names.gate + ".weight", {width, h}, &w.gate);
  add(prefix + names.up + ".weight", {width, h}, &w.up);
  add(prefix + names.down + ".weight", {h, width}, &w.down);
  if (!bias) return;
  add(prefix + names.gate + ".bias", {width}, &w.gate_bias);
  add(prefix + names.up + ".bias", {width}, &w.up_bias);
  add(prefix + names.down + ".bias", {h}, &w.down_bias);
}

void WeightTable::add_experts(const std::string& prefix, int64_t l, const MlpNames& names) {
  if (has(prefix + "gate_up_proj")) return add_fused_experts(prefix + "gate_up_proj", prefix + "down_proj", l);
  std::vector<ExpertWeights>& experts = layer(l).experts;
  experts.resize(size_t(m.num_experts));
  for (int64_t e = 0; e < m.num_experts; ++e)
    add_mlp(prefix + std::to_string(e) + ".", m.moe_intermediate_size, experts[size_t(e)], false, names);
}

void WeightTable::add_fused_experts(const std::string& gate_up_name, const std::string& down_name, int64_t l) {
  const int64_t count = m.num_experts, width = m.moe_intermediate_size, hidden = m.hidden_size;
  std::vector<ExpertWeights>& experts = layer(l).experts;
  experts.resize(size_t(count));
  TensorSpec gate_up{gate_up_name, {count, 2 * width, hidden}, {}}, down{down_name, {count, hidden, width}, {}};
  for (int64_t e = 0; e < count; ++e) {
    ExpertWeights& w = experts[size_t(e)];
    gate_up.pieces.push_back({&w.gate, e * 2 * width, width});
    gate_up.pieces.push_back({&w.up, e * 2 * width + width, width});
    down.pieces.push_back({&w.down, e * hidden, hidden});
  }
  add(std::move(gate_up));
  add(std::move(down));
}

std::vector<TensorSpec> dense_specs(const ModelConfig& m, const Checkpoint& checkpoint, ModelWeights& weights) {
  WeightTable table(m, checkpoint, weights);
  table.add_model();
  for (int64_t l = 0; l < m.num_layers; ++l) {
    table.add_norms(l);
    table.add_attention(l);
    table.add_dense_mlp(l);
  }
  return table.take();
}

}  // namespace lynx_rt
