// read_rope(): the keys of transformers' modeling_rope_utils, and its defaults where they are absent.
#include <algorithm>

#include "checkpoint/json.h"
#include "model/families/common/config_keys.h"

namespace lynx_rt {

namespace {

constexpr double kMaxFactor = 1e6;

std::optional<double> number_if(const ConfigReader& r, const std::string& key, double min, double max) {
  return r.has(key) ? std::optional(r.number(key, min, max)) : std::nullopt;
}

RopeKind read_kind(const ConfigReader& r, bool proportional = false) {
  const std::string type = r.string_or("rope_type", r.string_or("type", "default"));
  const std::pair<const char*, RopeKind> kinds[] = {{"default", RopeKind::kDefault},   {"linear", RopeKind::kLinear},
                                                    {"dynamic", RopeKind::kDynamic},   {"yarn", RopeKind::kYarn},
                                                    {"longrope", RopeKind::kLongrope}, {"llama3", RopeKind::kLlama3}};
  if (proportional && type == "proportional") return RopeKind::kProportional;
  for (const auto& [name, kind] : kinds)
    if (type == name) return kind;
  unsupported(r, "rope_type", quote(type), joined(kinds, [](const auto& k) { return k.first; }));
}

std::vector<double> read_pair_factors(const ConfigReader& r, const std::string& key, int64_t count) {
  std::vector<double> out = r.numbers_or(key, {}, 1e-6, kMaxFactor);
  if (int64_t(out.size()) != count)
    r.fail_key(key, str_cat("expected ", count, " numbers, one for each pair of rotated columns, got ", out.size()));
  return out;
}

// Reads the keys that the kind has beside theta.
void read_kind_keys(const ConfigReader& c, const ConfigReader& r, RopeConfig& rope) {
  const auto max_positions = [&] { return c.integer("max_position_embeddings", 1, 1 << 28); };
  const bool by_context = rope.kind == RopeKind::kYarn || rope.kind == RopeKind::kLongrope || rope.kind == RopeKind::kLlama3;
  if (by_context) {
    const char* key = "original_max_position_embeddings";
    const ConfigReader& from = c.has(key) ? c : r;
    rope.original_max_positions = from.has(key) ? from.integer(key, 2, 1 << 28) : max_positions();
  }
  if (rope.kind == RopeKind::kDynamic) rope.original_max_positions = max_positions();

  const bool by_ratio = rope.kind == RopeKind::kYarn || rope.kind == RopeKind::kLongrope;  // where factor is absent
  rope.factor = by_ratio && !r.has("factor") ? double(max_positions()) / double(rope.original_max_positions)
                                             : r.number("factor", 1, kMaxFactor);
  switch (rope.kind) {
    case RopeKind::kDefault:
    case RopeKind::kProportional:
    case RopeKind::kLinear: break;
    case RopeKind::kDynamic:
      rope.alpha = r.number_or("alpha", 0, 0, 1e9);
      if (rope.dim < 4) r.fail_key("rope_type", str_cat("dynamic: expected at least 4 rotated columns, got ", rope.dim));
      break;
    case RopeKind::kYarn:
      // 0 means "not set", as in transformers
      if (const double v = r.number_or("beta_fast", 0, 0, kMaxFactor)) rope.beta_fast = v;
      if (const double v = r.number_or("beta_slow", 0, 0, kMaxFactor)) rope.beta_slow = v;
      rope.truncate = r.boolean_or("truncate", true);
      rope.mscale = r.number_or("mscale", 0, 0, kMaxFactor);
      rope.mscale_all_dim = r.number_or("mscale_all_dim", 0, 0, kMaxFactor);
      rope.attention_factor = number_if(r, "attention_factor", 0, kMaxFactor);
      break;
    case RopeKind::kLongrope:
      rope.short_factor = read_pair_factors(r, "short_factor", rope.dim / 2);
      rope.long_factor = read_pair_factors(r, "long_factor", rope.dim / 2);
      rope.short_mscale = number_if(r, "short_mscale", 0, kMaxFactor);
      rope.long_mscale = number_if(r, "long_mscale", 0, kMaxFactor);
      rope.attention_factor = number_if(r, "attention_factor", 0, kMaxFactor);
      break;
    case RopeKind::kLlama3:
      rope.low_freq_factor = r.number("low_freq_factor", 1e-6, kMaxFactor);
      rope.high_freq_factor = r.number("high_freq_factor", 1e-6, kMaxFactor);
      if (rope.high_freq_factor < rope.low_freq_factor)  // Llama 4 Scout has them equal
        r.fail_key("high_freq_factor",
                   str_cat("expected at least low_freq_factor ", rope.low_freq_factor, ", got ", rope.high_freq_factor));
      break;
  }
}

}  // namespace

void read_rope(const ConfigReader& c, int64_t head_dim, ModelConfig& m, const CommonKeys& keys) {
  // transformers reads the older object, rope_scaling, in a config that has both. theta and the partial factor within the object
  // take precedence over those beside it.
  std::optional<ConfigReader> found = c.object("rope_scaling");
  if (!found || found->keys().empty()) found = c.object("rope_parameters");
  const ConfigReader& r = found ? *found : c;
  for (const char* layers : {"full_attention", "sliding_attention"})
    if (found && r.has(layers)) unsupported(r, layers, "with a rope of its own", "one rope for all layers");

  RopeConfig& rope = m.rope;
  rope = {};
  rope.kind = found ? read_kind(r) : RopeKind::kDefault;
  rope.theta = (r.has("rope_theta") ? r : c).number_or("rope_theta", keys.rope_theta, 1.0, 1e12);
  const char* partial_key = "partial_rotary_factor";
  const double partial = (r.has(partial_key) ? r : c).number_or(partial_key, keys.partial_rotary_factor, 0.0, 1.0);
  if (partial != 1 && !keys.partial_rotary) unsupported(r.has(partial_key) ? r : c, partial_key, str_cat(partial), "1");
  rope.dim = int64_t(double(head_dim) * partial);
  if (rope.dim % 2 != 0) c.fail_key(partial_key, str_cat("expected an even number of rotated columns, got ", rope.dim));
  if (rope.kind != RopeKind::kDefault) read_kind_keys(c, r, rope);
  // Users who add yarn to a config by hand, as Qwen3's model card recommends, leave max_position_embeddings at the original
  // length.
  if (rope.kind == RopeKind::kYarn)
    m.max_position_embeddings = std::max(m.max_position_embeddings, int64_t(double(rope.original_max_positions) * rope.factor));
}

RopeConfig read_layer_rope(const ConfigReader& c, const std::string& layer_type, int64_t head_dim, RopeConfig rope,
                           double partial_rotary_factor) {
  const std::optional<ConfigReader> all = c.object("rope_parameters");
  const std::optional<ConfigReader> found = all ? all->object(layer_type) : std::nullopt;
  if (all && !found) all->fail_key(layer_type, "missing, expected the rope of layers of that type");
  if (found) {
    rope = {};
    rope.kind = read_kind(*found, true);
    rope.theta = found->number("rope_theta", 1.0, 1e12);
    partial_rotary_factor = found->number_or("partial_rotary_factor", 1, 0.0, 1.0);
  }
  rope.dim = head_dim;
  if (rope.kind == RopeKind::kProportional) {
    rope.rotated_pairs = int64_t(partial_rotary_factor * double(head_dim) / 2);
    if (found) rope.factor = found->number_or("factor", 1, 1e-6, kMaxFactor);
  } else if (partial_rotary_factor != 1) {
    unsupported(*found, "partial_rotary_factor", str_cat(partial_rotary_factor), "1 where rope_type is not proportional");
  } else if (found && rope.kind != RopeKind::kDefault) {
    read_kind_keys(c, *found, rope);
  }
  return rope;
}

}  // namespace lynx_rt
