#include "model/families/common/weight_table.h"

#include <algorithm>
#include <cstring>
#include <functional>

#include "checkpoint/tensor_values.h"

namespace lynx_rt {

namespace {

// Returns whether the checkpoint holds the weight, plain or under one of the names of quantised weights.
bool stored(const Checkpoint& checkpoint, const std::string& name) {
  const std::string module = name.substr(0, name.rfind('.'));
  return checkpoint.has(name) || checkpoint.has(name + "_packed") || checkpoint.has(name + "_blocks") ||
         checkpoint.has(module + ".qweight");
}

// Returns whether two tensors hold the same values; false also where they would have to be decoded for that.
bool same_values(const Checkpoint& checkpoint, const std::string& first, const std::string& second) {
  if (!checkpoint.has(first) || !checkpoint.has(second)) return false;
  const TensorInfo &a = checkpoint.at(first), &b = checkpoint.at(second);
  const std::optional<DType> of_a = floating_dtype(a.dtype), of_b = floating_dtype(b.dtype);
  if (a.shape != b.shape || !of_a || !of_b) return false;
  if (of_a == of_b) return std::memcmp(a.data, b.data, size_t(a.bytes)) == 0;
  constexpr int64_t kCount = 1024;
  float values[2][kCount];
  const int64_t total = a.bytes / dtype_size(*of_a);
  for (int64_t i = 0; i < total; i += kCount) {
    const int64_t count = std::min(kCount, total - i);
    load_floats(a.data + i * dtype_size(*of_a), *of_a, count, values[0]);
    load_floats(b.data + i * dtype_size(*of_b), *of_b, count, values[1]);
    if (!std::equal(values[0], values[0] + count, values[1])) return false;
  }
  return true;
}

}  // namespace

ModelNames::ModelNames(const Checkpoint& checkpoint) {
  if (checkpoint.has("language_model.model.norm.weight")) root = "language_model.";
  base = checkpoint.has("norm.weight")                        ? ""
         : checkpoint.has("model.language_model.norm.weight") ? "model.language_model."
         : checkpoint.has("backbone.norm_f.weight")           ? "backbone."
                                                              : root + "model.";
}

bool WeightTable::can_hold(const std::vector<int64_t>& shape) const {
  double elements = 1;
  for (const int64_t d : shape) elements *= double(d);
  return checkpoint_.files().empty() || elements <= 2 * double(checkpoint_bytes_);
}

namespace {

// Returns the memory range that holds the views of a Placing.
std::pair<const void*, const void*> extent(const Placing& placing) {
  return std::visit(
      [](const auto& p) -> std::pair<const void*, const void*> {
        if constexpr (std::is_same_v<std::decay_t<decltype(p)>, WeightSlot>)
          return {p.view, p.view + 1};
        else
          return {p.data(), p.data() + p.size()};
      },
      placing);
}

}  // namespace

void WeightTable::add(TensorSpec spec, const std::vector<Placing>& placing) {
  for (const WeightPiece& piece : spec.pieces) {
    const bool placed = std::any_of(placing.begin(), placing.end(), [&](const Placing& p) {
      const auto [begin, end] = extent(p);
      return std::greater_equal<>()(piece.target, begin) && std::less<>()(piece.target, end);
    });
    if (!placed) fail(ErrorCode::kInternal, spec.name, "weight table: ", spec.name, ": a piece's target is not placed");
  }
  for (const Placing& p : placing)
    if (placed_.insert(extent(p).first).second) weights_.placing.push_back(p);
  specs_.push_back(std::move(spec));
}

void WeightTable::add_model() {
  const int64_t h = m.hidden_size;
  const std::string embed = names_.base + this->embed + ".weight", head = names_.head();
  const bool has_both = stored(checkpoint_, embed) && stored(checkpoint_, head);
  const bool head_alone = m.tie_word_embeddings && !has_both && stored(checkpoint_, head);
  add(head_alone ? head : embed, {m.vocab_size, h}, &weights_.embed, WeightUse::kEmbed);
  add_norm(names_.base + final_norm + ".weight", h, &weights_.final_norm);
  if (m.norm == NormKind::kLayer) add(names_.base + final_norm + ".bias", {h}, &weights_.final_norm_bias, WeightUse::kVector);
  const bool differs = m.tie_word_embeddings && has_both && !same_values(checkpoint_, embed, head);
  if (differs)
    weights_.warnings.push_back(
        str_cat("config.json says tie_word_embeddings, but ", head, " and ", embed,
                " are both in the checkpoint and differ: both are used. Set tie_word_embeddings to false"));
  if (!m.tie_word_embeddings || differs) add(head, {m.vocab_size, h}, &weights_.lm_head, WeightUse::kHead);
  if (m.lm_head_bias) add(names_.root + "lm_head.bias", {m.vocab_size}, &weights_.lm_head_bias, WeightUse::kVector);
}

void WeightTable::add_norm(std::string name, int64_t size, WeightView* target) {
  TensorSpec spec = whole_tensor(std::move(name), {size}, target);
  if (m.norm_offset) {
    spec.pieces[0].dtype = DType::kF32;
    spec.pieces[0].offset = 1;
  }
  add(std::move(spec), {WeightSlot{target, WeightUse::kVector}});
}

void WeightTable::add_norms(int64_t l) {
  const std::string name = layer_name(l);
  LayerWeights& w = layer(l);
  if (m.output_norms) {
    add_norm(name + "post_attention_layernorm.weight", m.hidden_size, &w.sandwich.attention_out);
    return add_norm(name + "post_feedforward_layernorm.weight", m.hidden_size, &w.sandwich.block_out);
  }
  const auto add_both = [&](const char* norm, WeightView& weight, WeightView& bias) {
    add_norm(name + norm + ".weight", m.hidden_size, &weight);
    if (m.norm == NormKind::kLayer) add(name + norm + ".bias", {m.hidden_size}, &bias, WeightUse::kVector);
  };
  if (m.layers[size_t(l)].mixer != MixerKind::kNone) add_both(input_norm, w.input_norm, w.input_norm_bias);
  if (m.sandwich_norms) return add_sandwich(l);
  if (m.layers[size_t(l)].mlp) add_both(mlp_norm, w.post_attention_norm, w.post_attention_norm_bias);
}

void WeightTable::add_sandwich(int64_t l) {
  const std::string name = layer_name(l);
  SandwichWeights& w = layer(l).sandwich;
  const auto add_norm = [&](const char* norm, WeightView& target) {
    add(name + norm, {m.hidden_size}, &target, WeightUse::kVector);
  };
  add_norm("post_attention_layernorm.weight", w.attention_out);
  add_norm("pre_feedforward_layernorm.weight", layer(l).post_attention_norm);
  add_norm("post_feedforward_layernorm.weight", w.block_out);
  add(name + "layer_scalar", {1}, &w.layer_scalar, WeightUse::kVector);
  if (!m.layers[size_t(l)].moe) return;
  add_norm("post_feedforward_layernorm_1.weight", w.mlp_out);
  add_norm("pre_feedforward_layernorm_2.weight", w.experts_in);
  add_norm("post_feedforward_layernorm_2.weight", w.experts_out);
  add_norm("router.scale", w.router_in);
  add_float32(name + "router.per_expert_scale", {m.num_experts}, &w.expert_scale);
}

void WeightTable::add_attention(int64_t l) {
  const LayerConfig& of_layer = m.layers[size_t(l)];
  const int64_t d = m.head_dim_of(of_layer), h = m.hidden_size, q = m.num_heads * d, kv = m.kv_heads_of(of_layer) * d;
  const int64_t q_rows = m.attention_gate ? 2 * q : q;
  const std::string name = layer_name(l) + attention;
  GqaWeights& w = layer(l).mixer.emplace<GqaWeights>();
  add(name + "q_proj.weight", {q_rows, h}, &w.q_proj, WeightUse::kMatrix);
  add(name + "k_proj.weight", {kv, h}, &w.k_proj, WeightUse::kMatrix);
  if (!of_layer.v_from_k) add(name + "v_proj.weight", {kv, h}, &w.v_proj, WeightUse::kMatrix);
  add(name + o_proj + ".weight", {h, q}, &w.o_proj, WeightUse::kMatrix);
  if (m.attention_bias) {
    add(name + "q_proj.bias", {q_rows}, &w.q_bias, WeightUse::kVector);
    add(name + "k_proj.bias", {kv}, &w.k_bias, WeightUse::kVector);
    if (!of_layer.v_from_k) add(name + "v_proj.bias", {kv}, &w.v_bias, WeightUse::kVector);
  }
  if (m.output_bias) add(name + o_proj + ".bias", {h}, &w.o_bias, WeightUse::kVector);
  if (m.sinks) add(name + "sinks", {m.num_heads}, &w.sinks, WeightUse::kVector);
  if (m.qk_norm == QkNorm::kNone || m.qk_norm == QkNorm::kUnitAfterRope) return;
  const bool width = m.qk_norm == QkNorm::kWidth;
  add_norm(name + q_norm + ".weight", width ? q : d, &w.q_norm);
  add_norm(name + k_norm + ".weight", width ? kv : d, &w.k_norm);
}

void WeightTable::add_gated_delta(int64_t l) {
  const DeltaShape& d = m.delta;
  const int64_t h = m.hidden_size, c = d.channels(), v = d.values();
  const std::string name = layer_name(l) + "linear_attn.";
  GatedDeltaWeights& w = layer(l).mixer.emplace<GatedDeltaWeights>();
  // GGUF files have Qwen3-Next's qkvz in two, kind by kind.
  if (m.delta_by_head && !has(name + "in_proj_qkv.weight")) {
    add(name + "in_proj_qkvz.weight", {c + v, h}, &w.in_proj_qkv, WeightUse::kMatrix);
  } else {
    add(name + "in_proj_qkv.weight", {c, h}, &w.in_proj_qkv, WeightUse::kMatrix);
    add(name + "in_proj_z.weight", {v, h}, &w.in_proj_z, WeightUse::kMatrix);
  }
  if (m.delta_by_head) {
    add(name + "in_proj_ba.weight", {2 * d.value_heads, h}, &w.in_proj_b, WeightUse::kMatrix);
  } else {
    add(name + "in_proj_b.weight", {d.value_heads, h}, &w.in_proj_b, WeightUse::kMatrix);
    add(name + "in_proj_a.weight", {d.value_heads, h}, &w.in_proj_a, WeightUse::kMatrix);
  }
  const int64_t keys = d.key_heads * d.key_dim;
  add_conv(name + "conv1d.weight", d.conv_width, {{&w.conv[0], keys}, {&w.conv[1], keys}, {&w.conv[2], v}});
  if (has(name + "A")) {  // GGUF files have -exp(A_log)
    add_float32(name + "A", {d.value_heads}, &w.rate);
  } else {
    add_rate(name + "A_log", {d.value_heads}, &w.rate);
  }
  add_float32(name + "dt_bias", {d.value_heads}, &w.dt_bias);
  add(name + "norm.weight", {d.value_dim}, &w.norm, WeightUse::kVector);
  add(name + "out_proj.weight", {h, v}, &w.out_proj, WeightUse::kMatrix);
}

void WeightTable::add_rate(std::string name, std::vector<int64_t> shape, WeightView* target) {
  const int64_t heads = *std::max_element(shape.begin(), shape.end());
  TensorSpec rate{std::move(name), std::move(shape), {}};
  const bool column = rate.shape.size() > 1;  // the heads are rows of one value
  rate.pieces.push_back({.target = target,
                         .row_begin = 0,
                         .rows = column ? heads : 1,
                         .transposed = column,
                         .dtype = DType::kF32,
                         .negative_exp = true});
  add(std::move(rate), {WeightSlot{target, WeightUse::kVector}});
}

void WeightTable::add_conv(std::string name, int64_t width, const std::vector<std::pair<WeightView*, int64_t>>& targets) {
  TensorSpec conv{std::move(name), {0, 1, width}, {}};
  std::vector<Placing> placing;
  for (const auto& [target, columns] : targets) {
    conv.pieces.push_back(
        {.target = target, .row_begin = conv.shape[0], .rows = columns, .transposed = true, .dtype = DType::kF32});
    conv.shape[0] += columns;
    placing.push_back(WeightSlot{target, WeightUse::kVector});
  }
  add(std::move(conv), placing);
}

void WeightTable::add_kda(int64_t l) {
  const DeltaShape& d = m.delta;
  const int64_t h = m.hidden_size, c = d.values(), rank = d.key_dim;
  const std::string name = layer_name(l) + "self_attn.";
  const std::string gate = has(name + "forget_gate.A_log") ? name + "forget_gate." : name;  // as transformers holds it in memory
  KdaWeights& w = layer(l).mixer.emplace<KdaWeights>();
  add(name + "q_proj.weight", {c, h}, &w.q_proj, WeightUse::kMatrix);
  add(name + "k_proj.weight", {c, h}, &w.k_proj, WeightUse::kMatrix);
  add(name + "v_proj.weight", {c, h}, &w.v_proj, WeightUse::kMatrix);
  add(name + "b_proj.weight", {d.value_heads, h}, &w.b_proj, WeightUse::kMatrix);
  add(gate + "f_a_proj.weight", {rank, h}, &w.f_a_proj, WeightUse::kMatrix);
  add(gate + "f_b_proj.weight", {c, rank}, &w.f_b_proj, WeightUse::kMatrix);
  add(name + "g_a_proj.weight", {rank, h}, &w.g_a_proj, WeightUse::kMatrix);
  add(name + "g_b_proj.weight", {c, rank}, &w.g_b_proj, WeightUse::kMatrix);
  if (has(name + "conv1d.weight")) {
    add_conv(name + "conv1d.weight", d.conv_width, {{&w.conv[0], c}, {&w.conv[1], c}, {&w.conv[2], c}});
  } else {
    add_conv(name + "q_conv1d.weight", d.conv_width, {{&w.conv[0], c}});
    add_conv(name + "k_conv1d.weight", d.conv_width, {{&w.conv[1], c}});
    add_conv(name + "v_conv1d.weight", d.conv_width, {{&w.conv[2], c}});
  }
  add_rate(gate + "A_log", {1, 1, d.value_heads, 1}, &w.rate);
  add_float32(gate + "dt_bias", {c}, &w.dt_bias);
  add(name + "o_norm.weight", {d.value_dim}, &w.norm, WeightUse::kVector);
  add(name + "o_proj.weight", {h, c}, &w.o_proj, WeightUse::kMatrix);
}

void WeightTable::add_mamba2(int64_t l) {
  const Mamba2Shape& s = m.mamba;
  const int64_t h = m.hidden_size;
  const std::string name = layer_name(l) + "mixer.";
  Mamba2Weights& w = layer(l).mixer.emplace<Mamba2Weights>();
  add(name + "in_proj.weight", {s.projected_columns(), h}, &w.in_proj, WeightUse::kMatrix);
  if (m.mixer_bias) add(name + "in_proj.bias", {s.projected_columns()}, &w.in_bias, WeightUse::kVector);
  add_conv(name + "conv1d.weight", s.conv_width, {{&w.conv, s.channels()}});
  if (m.conv_bias) add_float32(name + "conv1d.bias", {s.channels()}, &w.conv_bias);
  add_rate(name + "A_log", {s.heads}, &w.rate);
  add_float32(name + "dt_bias", {s.heads}, &w.dt_bias);
  add_float32(name + "D", {s.heads}, &w.skip);
  add(name + "norm.weight", {s.values()}, &w.norm, WeightUse::kVector);
  add(name + "out_proj.weight", {h, s.values()}, &w.out_proj, WeightUse::kMatrix);
  if (m.mixer_bias) add(name + "out_proj.bias", {h}, &w.out_bias, WeightUse::kVector);
}

void WeightTable::add_short_conv(int64_t l) {
  const int64_t h = m.hidden_size;
  const std::string name = layer_name(l) + "conv.";
  ShortConvWeights& w = layer(l).mixer.emplace<ShortConvWeights>();
  add(name + "in_proj.weight", {3 * h, h}, &w.in_proj, WeightUse::kMatrix);
  if (m.mixer_bias) add(name + "in_proj.bias", {3 * h}, &w.in_bias, WeightUse::kVector);
  add_conv(name + "conv.weight", m.short_conv_width, {{&w.conv, h}});
  if (m.conv_bias) add_float32(name + "conv.bias", {h}, &w.conv_bias);
  add(name + "out_proj.weight", {h, h}, &w.out_proj, WeightUse::kMatrix);
  if (m.mixer_bias) add(name + "out_proj.bias", {h}, &w.out_bias, WeightUse::kVector);
}

bool WeightTable::has_mlp(const std::string& prefix, const MlpNames& names) const {
  return stored(checkpoint_, prefix + names.down + ".weight");
}

void WeightTable::add_mlp(const std::string& prefix, int64_t width, ExpertWeights& w, std::span<ExpertWeights> placed_with,
                          bool bias, const MlpNames& names) {
  const int64_t h = m.hidden_size;
  const auto add_part = [&](const char* name, const char* suffix, std::vector<int64_t> shape, WeightView* target) {
    add(whole_tensor(prefix + name + suffix, std::move(shape), target), {placed_with});
  };
  add_part(names.gate, ".weight", {width, h}, &w.gate);
  if (names.up) add_part(names.up, ".weight", {width, h}, &w.up);
  add_part(names.down, ".weight", {h, width}, &w.down);
  if (!bias) return;
  add_part(names.gate, ".bias", {width}, &w.gate_bias);
  if (names.up) add_part(names.up, ".bias", {width}, &w.up_bias);
  add_part(names.down, ".bias", {h}, &w.down_bias);
}

void WeightTable::add_experts(const std::string& prefix, int64_t l, const MlpNames& names) {
  if (has(prefix + "gate_up_proj")) return add_fused_experts(prefix + "gate_up_proj", prefix + "down_proj", l);
  std::vector<ExpertWeights>& experts = layer(l).experts;
  experts.resize(size_t(m.num_experts));
  if (!names.up && has(prefix + names.gate)) {
    const int64_t count = m.num_experts, width = m.moe_intermediate_size, hidden = m.hidden_size;
    TensorSpec gate{prefix + names.gate, {count, width, hidden}, {}}, down{prefix + names.down, {count, hidden, width}, {}};
    for (int64_t e = 0; e < count; ++e) {
      gate.pieces.push_back({&experts[size_t(e)].gate, e * width, width});
      down.pieces.push_back({&experts[size_t(e)].down, e * hidden, hidden});
    }
    add(std::move(gate), {experts});
    return add(std::move(down), {experts});
  }
  for (int64_t e = 0; e < m.num_experts; ++e)
    add_mlp(prefix + std::to_string(e) + ".", m.moe_intermediate_size, experts[size_t(e)], experts, m.expert_bias, names);
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
  add(std::move(gate_up), {experts});
  add(std::move(down), {experts});
}

void WeightTable::add_transposed_experts(const std::string& gate_up_name, const std::string& down_name, int64_t l) {
  const int64_t count = m.num_experts, hidden = m.hidden_size, width = m.moe_intermediate_size;
  std::vector<ExpertWeights>& experts = layer(l).experts;
  experts.resize(size_t(count));
  TensorSpec gate_up{gate_up_name, {count, hidden, 2 * width}, {}}, down{down_name, {count, width, hidden}, {}};
  for (int64_t e = 0; e < count; ++e) {
    ExpertWeights& w = experts[size_t(e)];
    const int64_t row = e * hidden;
    gate_up.pieces.push_back({.target = &w.gate, .row_begin = row, .rows = hidden, .cols = width, .transposed = true});
    gate_up.pieces.push_back(
        {.target = &w.up, .row_begin = row, .rows = hidden, .col_begin = width, .cols = width, .transposed = true});
    down.pieces.push_back({.target = &w.down, .row_begin = e * width, .rows = width, .transposed = true});
  }
  add(std::move(gate_up), {experts});
  add(std::move(down), {experts});
}

void WeightTable::add_latent_attention(int64_t l) {
  const int64_t h = m.hidden_size, a = m.num_heads, latent = m.kv_lora_rank, nope = m.qk_nope_head_dim, v = m.v_head_dim;
  const std::string name = layer_name(l) + "self_attn.";
  MlaWeights& w = layer(l).mixer.emplace<MlaWeights>();
  if (m.q_lora_rank == 0) {
    add(name + "q_proj.weight", {a * m.head_dim, h}, &w.q_proj, WeightUse::kMatrix);
  } else {
    add(name + "q_a_proj.weight", {m.q_lora_rank, h}, &w.q_a_proj, WeightUse::kMatrix);
    if (m.attention_bias) add(name + "q_a_proj.bias", {m.q_lora_rank}, &w.q_a_bias, WeightUse::kVector);
    add(name + "q_a_layernorm.weight", {m.q_lora_rank}, &w.q_a_norm, WeightUse::kVector);
    add(name + "q_b_proj.weight", {a * m.head_dim, m.q_lora_rank}, &w.q_b_proj, WeightUse::kMatrix);
  }
  add(name + "kv_a_proj_with_mqa.weight", {latent + m.rope.dim, h}, &w.kv_a_proj, WeightUse::kMatrix);
  if (m.attention_bias) add(name + "kv_a_proj_with_mqa.bias", {latent + m.rope.dim}, &w.kv_a_bias, WeightUse::kVector);
  add(name + "kv_a_layernorm.weight", {latent}, &w.kv_a_norm, WeightUse::kVector);
  add(name + "o_proj.weight", {h, a * v}, &w.o_proj, WeightUse::kMatrix);
  if (m.output_bias) add(name + "o_proj.bias", {h}, &w.o_bias, WeightUse::kVector);
  if (!can_hold({a * (nope + v), latent})) return add({name + "kv_b_proj.weight", {a * (nope + v), latent}, {}}, {});
  w.k_absorb.resize(size_t(a));
  w.v_absorb.resize(size_t(a));
  if (has(name + "k_b_proj.weight")) {  // GGUF files have the two parts as they are used
    TensorSpec k_b{name + "k_b_proj.weight", {a, latent, nope}, {}}, v_b{name + "v_b_proj.weight", {a, v, latent}, {}};
    for (int64_t i = 0; i < a; ++i) {
      k_b.pieces.push_back({.target = &w.k_absorb[size_t(i)], .row_begin = i * latent, .rows = latent});
      v_b.pieces.push_back({.target = &w.v_absorb[size_t(i)], .row_begin = i * v, .rows = v});
    }
    add(std::move(k_b), {w.k_absorb});
    return add(std::move(v_b), {w.v_absorb});
  }
  TensorSpec kv_b{name + "kv_b_proj.weight", {a * (nope + v), latent}, {}};
  for (int64_t i = 0; i < a; ++i) {  // each head has nope rows for keys, then v rows for values
    const int64_t row = i * (nope + v);
    kv_b.pieces.push_back({.target = &w.k_absorb[size_t(i)], .row_begin = row, .rows = nope, .transposed = true});
    kv_b.pieces.push_back({.target = &w.v_absorb[size_t(i)], .row_begin = row + nope, .rows = v});
  }
  add(std::move(kv_b), {w.k_absorb, w.v_absorb});
}

std::vector<TensorSpec> decoder_specs(WeightTable table, const std::vector<MoeNames>& names) {
  const ModelConfig& m = table.m;
  table.add_model();
  for (int64_t l = 0; l < m.num_layers; ++l) {
    const LayerConfig& layer = m.layers[size_t(l)];
    LayerWeights& w = table.layer(l);
    table.add_norms(l);
    switch (layer.mixer) {
      case MixerKind::kGqa: table.add_attention(l); break;
      case MixerKind::kMla: table.add_latent_attention(l); break;
      case MixerKind::kGatedDelta: table.add_gated_delta(l); break;
      case MixerKind::kKda: table.add_kda(l); break;
      case MixerKind::kMamba2: table.add_mamba2(l); break;
      case MixerKind::kShortConv: table.add_short_conv(l); break;
      case MixerKind::kNone: break;
    }
    if (!layer.mlp) continue;
    const auto stored = std::find_if(names.begin(), names.end(), [&](const MoeNames& n) {
      const std::string block = table.layer_name(l) + n.block;
      return layer.moe ? table.has(block + n.router) : table.has_mlp(block, n.mlp);
    });
    const MoeNames& n = stored == names.end() ? names[0] : *stored;
    const std::string block = table.layer_name(l) + n.block;
    if (!layer.moe) {
      table.add_mlp(block, m.intermediate_size, w.mlp, m.mlp_bias, n.mlp);
      continue;
    }
    table.add(block + n.router, {m.num_experts, m.hidden_size}, &w.router, WeightUse::kRouter);
    if (m.router_bias) table.add(block + n.router_bias, {m.num_experts}, &w.router_bias, WeightUse::kVector);
    if (m.choice_bias) table.add_float32(block + n.choice_bias, {m.num_experts}, &w.choice_bias);
    if (n.add_experts) {
      n.add_experts(table, block + n.experts, l);
    } else {
      table.add_experts(block + n.experts, l, n.expert);
    }
    if (m.shared_expert_width > 0 && n.add_shared_expert)
      n.add_shared_expert(table, l);
    else if (m.shared_expert_width > 0)
      table.add_mlp(block + n.shared_expert, m.shared_expert_width, w.shared_expert, m.mlp_bias, n.mlp);
    if (m.shared_expert_gate)
      table.add(block + n.shared_expert_gate, {1, m.hidden_size}, &w.shared_expert_gate, WeightUse::kRouter);
  }
  return table.take();
}

std::vector<TensorSpec> usual_specs(const ModelConfig& m, const Checkpoint& checkpoint, ModelWeights& weights) {
  return decoder_specs({m, checkpoint, weights}, {MoeNames{}});
}

}  // namespace lynx_rt
