#include "checkpoint/gguf_config_writer.h"

#include <cstring>

namespace lynx_rt {

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

namespace {

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

}  // namespace

void set_rope(ConfigWriter& c, Json::Object further) {
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
  Json::Object scaling;
  const auto add = [&](const char* key, const Json& value) { scaling.emplace_back(key, value); };
  if (kind == "none" || factor == 1) {
    add("rope_type", {std::string("default")});
    return c.set("rope_scaling", {std::move(scaling)});
  }
  if (kind != "linear" && kind != "yarn") c.unsupported("rope.scaling.type", quote(kind), "none, linear, yarn");
  if (kind == "yarn") scaling = std::move(further);
  add("rope_type", {kind});
  add("factor", {factor});
  if (kind == "yarn") {
    if (original) add("original_max_position_embeddings", *original);
    add("beta_fast", {c.number("rope.scaling.yarn_beta_fast", 32)});
    add("beta_slow", {c.number("rope.scaling.yarn_beta_slow", 1)});
  }
  c.set("rope_scaling", {ConfigWriter::sorted(std::move(scaling))});
}

namespace {

void require_gating(ConfigWriter& c, Gating only) {
  if (const int64_t found = c.integer("expert_gating_func", only); found != only && found != kUnstated)
    c.unsupported("expert_gating_func", str_cat(found), str_cat(int64_t(only)));
}

}  // namespace

void set_experts(ConfigWriter& c, std::string_view width, Gating gating, std::string_view count, std::string_view top_k) {
  c.set(count, {c.integer("expert_count")});
  c.check_experts(c.integer("expert_count"));
  c.copy("expert_used_count", top_k);
  // Older files state the width of experts as the width of the layer.
  if (!c.copy_if("expert_feed_forward_length", width)) c.copy("feed_forward_length", width);
  require_gating(c, gating);
}

void require_plain_router(ConfigWriter& c, bool normalized) {
  if (c.boolean("expert_weights_norm", normalized) != normalized)
    c.unsupported("expert_weights_norm", normalized ? "false" : "true", normalized ? "true" : "false");
  if (c.number("expert_weights_scale", 0) != 0) c.require("expert_weights_scale", 1);
  for (const char* key : {"expert_group_count", "expert_group_used_count"})
    if (c.integer(key, 0) > 1) c.unsupported(key, str_cat(c.integer(key)), "1");
}

double factor_of(int64_t part, int64_t size) {
  double factor = double(part) / double(size);
  while (int64_t(factor * double(size)) < part) factor = std::nextafter(factor, 2 * factor);
  return factor;
}

void set_heads(ConfigWriter& c, bool partial) {
  const int64_t heads = c.integer("attention.head_count"), hidden = c.integer("embedding_length");
  const int64_t size = c.integer("attention.key_length", heads > 0 ? hidden / heads : 0);
  c.set("head_dim", {size});
  c.copy_if("attention.head_count_kv", "num_key_value_heads");
  if (const int64_t v = c.integer("attention.value_length", size); v != size)
    c.unsupported("attention.value_length", str_cat(v), str_cat(size, " as attention.key_length"));
  const int64_t rotated = c.integer("rope.dimension_count", size);
  if (partial && size > 0) {
    c.set("partial_rotary_factor", {factor_of(rotated, size)});
  } else if (rotated != size) {
    c.unsupported("rope.dimension_count", str_cat(rotated), str_cat(size));
  }
}

}  // namespace lynx_rt
