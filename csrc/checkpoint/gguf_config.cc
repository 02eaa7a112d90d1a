#include <algorithm>

#include "checkpoint/gguf_blocks.h"
#include "checkpoint/gguf_config_writer.h"

namespace lynx_rt {

namespace {

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

void write_architecture(ConfigWriter& c, std::string_view name, int64_t layers) {
  if (name == "llama") return write_llama(c);
  if (name == "qwen2" || name == "qwen3") return write_qwen_dense(c, name == "qwen2" ? "qwen2" : "qwen3");
  if (name == "qwen2moe" || name == "qwen3moe") return write_qwen_moe(c, name == "qwen3moe");
  if (name == "olmoe") return write_olmoe(c);
  if (name == "phimoe") return write_phimoe(c);
  if (name == "gpt-oss") return write_gpt_oss(c);
  if (name == "deepseek2") return write_deepseek2(c);
  if (name == "glm4moe") return write_glm4moe(c);
  if (name == "qwen3next" || name == "qwen35" || name == "qwen35moe") return write_qwen_hybrid(c, name, layers);
  if (name == "gemma4") return write_gemma4(c, layers);
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

// Returns the tokens that end a text. Gemma 4's files lack keys for those that end a turn, which llama.cpp knows by their text.
Json::Array ends_of(const GgufFile& file, std::string_view architecture, int64_t vocab_size) {
  Json::Array ends;
  const auto add = [&](int64_t id) {
    if (std::any_of(ends.begin(), ends.end(), [&](const Json& e) { return *e.as<int64_t>() == id; })) return;
    ends.emplace_back().value = id;
  };
  for (const char* name : {"eos", "eot", "eom"})
    if (const Json* id = file.find(str_cat("tokenizer.ggml.", name, "_token_id")); id && id->as<int64_t>())
      add(*id->as<int64_t>());
  const Json* tokens = architecture == "gemma4" ? file.find("tokenizer.ggml.tokens") : nullptr;
  const auto* texts = tokens ? tokens->as<Json::Array>() : nullptr;
  for (int64_t i = 0; texts && i < std::min(vocab_size, int64_t(texts->size())); ++i)
    if (const auto* text = (*texts)[size_t(i)].as<std::string>())
      if (*text == "<eos>" || *text == "<turn|>" || *text == "<|tool_response>") add(i);
  return ends;
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
  constexpr int64_t kMostLayers = 1 << 16;  // lists have a value for each; families have limits of their own
  if (layers > kMostLayers) c.reject("block_count", "expected at most ", kMostLayers, ", got ", layers);
  c.set("num_hidden_layers", {layers});
  const TensorInfo* embedding = c.tensor("token_embd.weight");
  if (!embedding) c.reject_tensor("token_embd.weight", "missing");
  if (embedding->shape.size() != 2) c.reject_tensor("token_embd.weight", "expected two dimensions, got shape ", embedding->shape);
  c.set("vocab_size", {embedding->shape[0]});
  c.integer("vocab_size", 0);  // of the tokenizer
  if (!c.boolean("attention.causal", true)) c.unsupported("attention.causal", "false", "true");
  if (c.boolean("use_parallel_residual", false)) c.unsupported("use_parallel_residual", "true", "false");
  Json::Array ends = ends_of(file, architecture_of(file).name, embedding->shape[0]);
  if (!ends.empty()) c.set("eos_token_id", {std::move(ends)});
  write_architecture(c, architecture_of(file).name, layers);
  return c.finish();
}

}  // namespace lynx_rt
