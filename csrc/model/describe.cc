#include "model/describe.h"

#include <algorithm>
#include <set>

#include "base/error.h"
#include "checkpoint/safetensors.h"
#include "model/decoder.h"
#include "model/family.h"
#include "model/load_weights.h"
#include "model/pack_experts.h"

namespace lynx_rt {

namespace {

// Returns "WHAT", "WHAT in N of M layers", or "" where no layer has it.
template <class Has>
std::string in_layers(const ModelConfig& m, const std::string& what, Has has) {
  const int64_t count = std::count_if(m.layers.begin(), m.layers.end(), has);
  if (count == 0) return "";
  return ", " + what + (count < m.num_layers ? str_cat(" in ", count, " of ", m.num_layers, " layers") : "");
}

const char* norm_text(QkNorm norm) {
  switch (norm) {
    case QkNorm::kNone: return "";
    case QkNorm::kHead: return ", q/k norm of each head";
    case QkNorm::kWidth: return ", q/k norm over all heads";
    case QkNorm::kHeadAfterRope: return ", q/k norm of each head after rope";
    case QkNorm::kUnitAfterRope: return ", q/k norm without weights after rope";
  }
  return "";
}

const char* kind_text(RouterKind kind) {
  switch (kind) {
    case RouterKind::kSoftmax: return "softmax";
    case RouterKind::kSigmoid: return "sigmoid";
    case RouterKind::kSparsemixer: return "sparsemixer";
  }
  return "";
}

const char* kind_text(RopeKind kind) {
  switch (kind) {
    case RopeKind::kDefault: return "default";
    case RopeKind::kLinear: return "linear";
    case RopeKind::kDynamic: return "dynamic";
    case RopeKind::kYarn: return "yarn";
    case RopeKind::kLongrope: return "longrope";
    case RopeKind::kLlama3: return "llama3";
    case RopeKind::kProportional: return "proportional";
  }
  return "";
}

WeightOption describe_option(std::string_view name, const ModelConfig& c, const ModelWeights& weights,
                             const Checkpoint& checkpoint) {
  WeightOption o;
  o.quantization = name;
  const QuantFormat quantization = parse_quantization(o.quantization);
  const auto add = [&](const WeightView& from, WeightUse use) {
    const WeightView view = view_on_cpu(from, use, quantization);
    o.bytes_per_token += use == WeightUse::kEmbed ? view.row_bytes() : view.bytes();
    if (use == WeightUse::kHead && view.data == weights.embed.data) return;
    (checkpoint.contains(view.data) ? o.mapped_bytes : o.anonymous_bytes) += view.bytes();
  };
  for (const Placing& placing : weights.placing) visit_weights(placing, add);
  for (const LayerWeights& layer : weights.layers) {
    if (layer.experts.empty()) continue;
    for (const ExpertWeights& e : layer.experts) {
      o.slot_bytes = std::max(o.slot_bytes, record_bytes(e, quantization));
      o.low_bytes += record_bytes(e, QuantFormat::kInt4);
    }
    int64_t bytes = 0;
    ExpertWeights first = layer.experts[0];
    visit_weights(std::span(&first, 1),
                  [&](const WeightView& v, WeightUse use) { bytes += view_on_cpu(v, use, quantization).bytes(); });
    o.expert_bytes += int64_t(layer.experts.size()) * bytes;
    o.bytes_per_token -= (int64_t(layer.experts.size()) - c.num_experts_per_tok) * bytes;
  }
  return o;
}

}  // namespace

std::string describe_router(const ModelConfig& m) {
  if (m.num_experts == 0) return "";
  const RouterRule& r = m.router;
  std::string text = str_cat(kind_text(r.kind), m.choice_bias ? " + bias" : "", m.router_bias ? " of biased logits" : "", ", ",
                             m.num_experts_per_tok, " of ", m.num_experts, " experts");
  if (r.num_groups > 1) text += str_cat(" in the best ", r.top_groups, " of ", r.num_groups, " groups");
  if (r.kind != RouterKind::kSparsemixer) text += r.norm_topk ? ", normalised" : ", not normalised";
  if (r.scale != 1) text += str_cat(", times ", r.scale);
  if (m.ffn.scale_input) text += ", weights on the experts' inputs";
  if (m.shared_expert_width > 0 && m.sandwich_norms)
    text += str_cat(", a dense MLP of width ", m.shared_expert_width, " beside them");
  else if (m.shared_expert_width > 0)
    text += str_cat(", shared expert of width ", m.shared_expert_width, m.shared_expert_gate ? " with a gate" : "");
  return text;
}

std::string describe_attention(const ModelConfig& m) {
  std::string text;
  if (m.has_mixer(MixerKind::kMla)) {
    text = str_cat("multi-head latent, ", m.num_heads, " heads of ", m.qk_nope_head_dim, " + ", m.rope.dim, ", latent of ",
                   m.kv_lora_rank);
    if (m.q_lora_rank > 0) text += str_cat(", of queries ", m.q_lora_rank);
  } else {
    text = str_cat(m.num_heads, " query heads and ", m.num_kv_heads, " key/value heads of ", m.head_dim);
    const auto differs = [&](const LayerConfig& l) { return l.num_kv_heads > 0 || l.head_dim > 0; };
    if (const auto other = std::find_if(m.layers.begin(), m.layers.end(), differs); other != m.layers.end())
      text += in_layers(m, str_cat(m.kv_heads_of(*other), " of ", m.head_dim_of(*other)), differs);
    text += in_layers(m, "values that are the keys", [](const LayerConfig& l) { return l.v_from_k; });
  }
  text += norm_text(m.qk_norm);
  if (m.v_norm) text += ", norm of values";
  if (m.attention_gate) text += ", gated";
  if (m.attention_bias) text += ", biases";
  if (m.sinks) text += ", sinks";
  for (const LayerConfig& l : m.layers)  // one window size and one chunk size serve all layers that have them
    if (l.window > 0 || l.chunk > 0) {
      text += in_layers(m, str_cat("window ", l.window), [](const LayerConfig& x) { return x.window > 0; });
      text += in_layers(m, str_cat("chunks of ", l.chunk), [](const LayerConfig& x) { return x.chunk > 0; });
      break;
    }
  if (m.has_mixer(MixerKind::kGatedDelta))
    text += in_layers(m,
                      str_cat("gated DeltaNet of ", m.delta.key_heads, " key heads of ", m.delta.key_dim, " and ",
                              m.delta.value_heads, " value heads of ", m.delta.value_dim, " instead"),
                      [](const LayerConfig& x) { return x.mixer == MixerKind::kGatedDelta; });
  const auto instead = [&](MixerKind kind, const std::string& what) {
    text += in_layers(m, what + " instead", [&](const LayerConfig& x) { return x.mixer == kind; });
  };
  instead(MixerKind::kKda, str_cat("Kimi delta attention of ", m.delta.key_heads, " heads of ", m.delta.key_dim));
  instead(MixerKind::kMamba2,
          str_cat("Mamba2 of ", m.mamba.heads, " heads of ", m.mamba.head_dim, " with states of ", m.mamba.state_dim));
  instead(MixerKind::kShortConv, str_cat("a convolution of ", m.short_conv_width, " tokens"));
  instead(MixerKind::kNone, "an MLP or experts alone");
  return text + in_layers(m, "no rope", [](const LayerConfig& x) { return !x.rope; });
}

namespace {
std::string describe_rope(const RopeConfig& r, int64_t head_dim) {
  std::string text = kind_text(r.kind);
  if (r.kind != RopeKind::kDefault && r.kind != RopeKind::kLongrope) text += str_cat(", factor ", r.factor);
  const int64_t turning = r.kind == RopeKind::kProportional ? 2 * r.rotated_pairs : r.dim;
  return text + str_cat(", theta ", r.theta, ", ", turning, " of ", head_dim, " columns", r.interleaved ? " in pairs" : "");
}
}  // namespace

std::string describe_rope(const ModelConfig& m) {
  if (!m.window_rope) return describe_rope(m.rope, m.head_dim);
  return str_cat(describe_rope(m.rope, m.rope.dim), "; in layers with a window ",
                 describe_rope(*m.window_rope, m.window_rope->dim));
}

std::vector<std::string> keys_that_matter(std::vector<std::string> keys) {
  // clang-format off
  static const std::set<std::string> kHarmless = {
      "_attn_implementation", "_name_or_path", "architectures", "attention_dropout", "auto_map", "aux_loss_alpha",
      "bos_token_id", "cache_implementation", "chunk_size_feed_forward", "decoder_start_token_id", "embd_pdrop", "eod_token_id",
      "ep_size", "experts_per_token", "for_llm_compressor", "id2label", "initial_context_length", "initializer_range",
      "input_jitter_noise", "is_encoder_decoder", "label2id", "max_window_layers", "moe_capacity", "moe_use_aux_free",
      "mtp_transformer_layers", "num_experts_per_token", "num_mtp_layers", "num_mtp_modules", "num_nextn_predict_layers",
      "output_attentions", "output_hidden_states", "output_router_logits", "pad_token_id", "pretraining_tp", "problem_type",
      "qk_head_dim", "resid_pdrop", "return_dict", "router_aux_loss_coef", "router_jitter_noise", "router_z_loss_coef",
      "sep_token_id", "seq_aux", "torch_dtype", "transformers_version", "unsloth_fixed", "unsloth_version", "use_cache",
      "use_mtp"};
  // clang-format on
  std::erase_if(keys, [](const std::string& key) {
    // quantization_config is checked where it is read, and tools write many keys there that nobody needs.
    return key.starts_with("quantization_config.") || kHarmless.count(key.substr(key.rfind('.') + 1)) > 0;
  });
  return keys;
}

ModelDescription describe_model(const std::string& path) {
  ModelDescription d;
  std::vector<std::string> unread;
  d.config = read_model_config(path, &unread);
  const ModelConfig& c = d.config;
  const Checkpoint checkpoint = Checkpoint::open(path);
  ModelWeights weights;
  load_weights(c, checkpoint, weights, ReadCopies::kNever, [](WeightUse, const BlockRows&) { return true; });
  d.options.push_back(describe_option("none", c, weights, checkpoint));
  const bool decodes = std::any_of(weights.placing.begin(), weights.placing.end(), [](const Placing& placing) {
    bool found = false;
    visit_weights(placing, [&](const WeightView& v, WeightUse) { found |= v.format == QuantFormat::kBlocks; });
    return found;
  });
  if (decodes || !c.quantization.empty()) {
    ModelWeights decoded;
    load_weights(c, checkpoint, decoded, ReadCopies::kNever);
    d.options.push_back(describe_option(kDequantize, c, decoded, checkpoint));
  }
  const bool fp8 = std::any_of(c.quantization.formats.begin(), c.quantization.formats.end(),
                               [](const QuantizedFormat& f) { return f.encoding == Encoding::kFloat8; });
  ModelWeights but_fp8;
  if (fp8)
    load_weights(c, checkpoint, but_fp8, ReadCopies::kNever,
                 [](WeightUse, const BlockRows& rows) { return stays_in_blocks(rows, "int8"); });
  for (const char* name : {"int8", "int4"}) d.options.push_back(describe_option(name, c, fp8 ? but_fp8 : weights, checkpoint));
  int64_t bytes_of_experts = 0, num_experts = 0;  // over all layers
  for (const LayerWeights& layer : weights.layers) {
    for (const ExpertWeights& e : layer.experts) bytes_of_experts += e.bytes();
    num_experts += int64_t(layer.experts.size());
  }
  d.tied = weights.lm_head.data == weights.embed.data;
  d.num_tensors = int64_t(checkpoint.tensors().size());
  d.num_files = int64_t(checkpoint.files().size());
  d.checkpoint_bytes = checkpoint.total_bytes();
  d.weight_bytes = weight_bytes(weights);
  d.expert_bytes = num_experts ? bytes_of_experts / num_experts : 0;
  d.active_bytes_per_token = d.options[0].bytes_per_token;
  d.kv_bytes_per_token = KvCache::bytes_per_block(c, c.dtype, 1);
  for (const PageGroup& group : page_groups(c, c.dtype, c.max_position_embeddings).groups)
    d.kv_bytes_per_sequence += checked_mul(group.span(c.max_position_embeddings), group.bytes_per_token, "kv_cache");
  for (const int64_t bytes : state_bytes(c, c.dtype)) d.state_bytes_per_sequence += bytes;
  d.copied_weight_bytes = weights.copies.bytes();
  d.warnings = weights.warnings;
  if (!c.context_limit.empty()) d.warnings.push_back(c.context_limit);
  d.not_used = weights.not_used;
  d.keys_not_understood = keys_that_matter(std::move(unread));
  return d;
}

}  // namespace lynx_rt
