// Configs of architectures whose layers differ in more than experts: Qwen3-Next and Qwen3.5 (DeltaNet and attention), Gemma 4 (windows,
// and heads of two sizes).
#include <algorithm>

#include "checkpoint/gguf_config_writer.h"

namespace lynx_rt {

namespace {

Json strings_of(const std::vector<bool>& which, int64_t count, const char* if_true, const char* if_false) {
  Json::Array out(static_cast<size_t>(count));
  for (size_t l = 0; l < out.size(); ++l) out[l].value = std::string(which[l] ? if_true : if_false);
  return {std::move(out)};
}

// Sets layer_types. The lists of a file have items for layers that predict further tokens, too.
void set_linear_layers(ConfigWriter& c, int64_t layers) {
  const int64_t interval = c.integer("full_attention_interval", 4);
  std::vector<bool> linear = c.booleans("attention.recurrent_layers", c.integer("block_count"));
  if (linear.empty()) {
    if (interval < 1) c.reject("full_attention_interval", "expected at least 1, got ", interval);
    for (int64_t l = 0; l < layers; ++l) linear.push_back((l + 1) % interval != 0);
  }
  c.set("layer_types", strings_of(linear, layers, "linear_attention", "full_attention"));
}

// Sets the sizes of DeltaNet's heads, which have the names of a state-space model's in the file.
void set_delta(ConfigWriter& c) {
  c.set("linear_conv_kernel_dim", {c.integer("ssm.conv_kernel")});
  c.set("linear_num_key_heads", {c.integer("ssm.group_count")});
  c.set("linear_num_value_heads", {c.integer("ssm.time_step_rank")});
  c.set("linear_key_head_dim", {c.integer("ssm.state_size")});
  const int64_t heads = c.integer("ssm.time_step_rank"), columns = c.integer("ssm.inner_size");
  if (heads == 0) c.reject("ssm.time_step_rank", "expected at least 1, got 0");
  if (columns % heads != 0) c.reject("ssm.inner_size", "expected a multiple of ssm.time_step_rank ", heads, ", got ", columns);
  c.set("linear_value_head_dim", {columns / heads});
}

// Returns the part of a head of `size` columns that proportional rope rotates. The file has a factor of 1 for each pair that is rotated,
// then one so large that the others stand still.
double rotated_part(const ConfigWriter& c, int64_t size) {
  constexpr double kStill = 1e20;
  const char* name = "rope_freqs.weight";
  const Json factors = factors_of(c, name);
  const Json::Array& all = *factors.as<Json::Array>();
  if (int64_t(all.size()) != size / 2)
    c.reject_tensor(name, "expected a factor for each of ", size / 2, " pairs of columns, got ", all.size());
  size_t rotated = 0;
  while (rotated < all.size() && *all[rotated].as<double>() == 1) ++rotated;
  for (size_t i = rotated; i < all.size(); ++i)
    if (!(*all[i].as<double>() >= kStill))
      c.reject_tensor(name, "expected factors of 1 and then of at least 1e20, got ", *all[i].as<double>(), " for pair ", i);
  return factor_of(2 * int64_t(rotated), size);
}

// Refuses a scaled rope: the file does not say of which layers.
void require_no_scaling(ConfigWriter& c) {
  if (const Json* type = c.find("rope.scaling.type")) {
    const auto* name = type->as<std::string>();
    if (!name) c.reject("rope.scaling.type", "expected a string, got ", describe(*type));
    if (*name != "none") c.unsupported("rope.scaling.type", quote(*name), "none");
  }
  if (c.number("rope.scaling.factor", 0) != 0) c.require("rope.scaling.factor", 1);
  c.boolean("rope.scaling.finetuned", false);  // says how the model was trained
}

Json rope_of(const char* type, double theta, double part) {
  Json::Object out(3);
  out[0] = {"partial_rotary_factor", {part}};
  out[1] = {"rope_theta", {theta}};
  out[2].first = "rope_type";
  out[2].second.value = std::string(type);
  return {std::move(out)};
}

// Returns the size of the heads of a kind of layers.
int64_t head_size(ConfigWriter& c, const std::string& suffix) {
  const int64_t size = c.integer("attention.key_length" + suffix), v = c.integer("attention.value_length" + suffix);
  if (size == 0) c.reject("attention.key_length" + suffix, "expected at least 1, got 0");
  if (v != size) c.unsupported("attention.value_length" + suffix, str_cat(v), str_cat(size, " as attention.key_length", suffix));
  return size;
}

}  // namespace

void write_qwen_hybrid(ConfigWriter& c, std::string_view architecture, int64_t layers) {
  const bool next = architecture == "qwen3next", dense = architecture == "qwen35";
  c.set("model_type", {std::string(next ? "qwen3_next" : dense ? "qwen3_5_text" : "qwen3_5_moe_text")});
  set_heads(c, true);
  set_rope(c);
  // The position in text is one for all axes, so that their shares of a head do not matter.
  constexpr int64_t kAxes = 4;
  c.integers("rope.dimension_sections", kAxes);
  c.set("attention_bias", {c.any_tensor(".attn_q.bias")});
  set_linear_layers(c, layers);
  set_delta(c);
  // What the converter changes: norms are 1 + w; value heads are reordered, but for Qwen3-Next.
  c.set("norm_offset", {false});
  c.set("linear_value_heads_tiled", {!next});
  if (dense) return c.copy("feed_forward_length", "intermediate_size");
  c.copy_if("feed_forward_length", "intermediate_size");
  set_experts(c, "moe_intermediate_size", kSoftmax);
  require_plain_router(c, true);
  c.set("norm_topk_prob", {true});  // what llama.cpp computes: the file does not say
  if (!c.copy_if("expert_shared_feed_forward_length", "shared_expert_intermediate_size"))
    c.copy("feed_forward_length", "shared_expert_intermediate_size");
}

void write_gemma4(ConfigWriter& c, int64_t layers) {
  c.set("model_type", {std::string("gemma4_text")});
  c.require("embedding_length_per_layer_input", 0);  // of E2B and E4B
  c.require("attention.shared_kv_layers", 0);
  c.set("hidden_size_per_layer_input", {int64_t(0)});
  c.copy("feed_forward_length", "intermediate_size");
  c.copy_if("final_logit_softcapping", "final_logit_softcapping");
  c.set("sliding_window", {c.integer("attention.sliding_window")});

  const char* pattern = "attention.sliding_window_pattern";
  if (const Json* value = c.find(pattern); !value || !value->as<Json::Array>())
    c.reject(pattern, "expected a bool for each layer, got ", value ? describe(*value) : "nothing");
  const std::vector<bool> sliding = c.booleans(pattern, layers);
  if (sliding.back()) c.unsupported(pattern, "with a window in the last layer", "none there");
  c.set("layer_types", strings_of(sliding, layers, "sliding_attention", "full_attention"));

  const bool any_sliding = std::find(sliding.begin(), sliding.end(), true) != sliding.end();
  const int64_t full = head_size(c, ""),
                windowed = any_sliding || c.has("attention.key_length_swa") ? head_size(c, "_swa") : full;
  std::vector<int64_t> kv_heads = c.integers("attention.head_count_kv", layers);
  if (kv_heads.empty()) c.reject("attention.head_count_kv", "missing in the file's metadata");
  Json::Object of_layers;
  for (int64_t l = 0; l < layers; ++l) {
    Json::Object of_layer;
    of_layer.emplace_back("head_dim", Json{sliding[size_t(l)] ? windowed : full});
    of_layer.emplace_back("num_key_value_heads", Json{kv_heads[size_t(l)]});
    of_layers.emplace_back(std::to_string(l), Json{std::move(of_layer)});
  }
  c.set("head_dim", {windowed});
  c.set("num_key_value_heads", {kv_heads[0]});
  c.set("per_layer_config", {ConfigWriter::sorted(std::move(of_layers))});
  // Layers without v take k for it: all full layers, or none.
  c.set("attention_k_eq_v", {c.tensor(str_cat("blk.", layers - 1, ".attn_v.weight")) == nullptr});

  require_no_scaling(c);
  if (const int64_t n = c.integer("rope.dimension_count", full); n != full)
    c.unsupported("rope.dimension_count", str_cat(n), str_cat(full, " as attention.key_length"));
  const double theta = c.number("rope.freq_base", 1e6);
  Json::Object ropes;
  ropes.emplace_back("full_attention", rope_of("proportional", ConfigWriter::shortest(theta), rotated_part(c, full)));
  if (any_sliding || c.has("rope.freq_base_swa")) {
    if (!c.has("rope.freq_base_swa")) c.reject("rope.freq_base_swa", "missing in the file's metadata");
    if (const int64_t n = c.integer("rope.dimension_count_swa", windowed); n != windowed)
      c.unsupported("rope.dimension_count_swa", str_cat(n), str_cat(windowed, " as attention.key_length_swa"));
    ropes.emplace_back("sliding_attention", rope_of("default", c.number("rope.freq_base_swa", 0), 1));
  }
  c.set("rope_parameters", {std::move(ropes)});

  if (c.integer("expert_count", 0) == 0) {
    for (const char* of_experts : {"expert_used_count", "expert_feed_forward_length"}) c.integer(of_experts, 0);
    return;
  }
  c.set("enable_moe_block", {true});
  set_experts(c, "moe_intermediate_size", kSoftmax, "num_experts", "top_k_experts");
  require_plain_router(c, true);
}

}  // namespace lynx_rt
