// MiniMax-M2. Keys and names: transformers' minimax_m2 configuration and the hub's checkpoints.
#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  CommonKeys keys{.rope_theta = 5e6, .partial_rotary = true};
  if (c.has("rotary_dim")) {  // released configs state the rotated columns instead of their share of a head
    const int64_t head_dim = c.integer("head_dim", 1, 1 << 16), rotary_dim = c.integer("rotary_dim", 1, head_dim);
    if (rotary_dim % 2 != 0) c.fail_key("rotary_dim", str_cat("expected an even number, got ", rotary_dim));
    keys.partial_rotary_factor = double(rotary_dim) / double(head_dim);
  }
  ModelConfig m = read_common(c, keys);
  m.qk_norm = QkNorm::kWidth;
  read_experts(c, {{"num_local_experts", "num_experts"}, {"num_experts_per_tok"}, {"intermediate_size"}, 8}, m);
  m.router.kind = RouterKind::kSigmoid;
  m.choice_bias = true;
  for (LayerConfig& l : m.layers) l.moe = true;
  // Keys of the released configs, each with the one value that transformers' code assumes.
  require_flag(c, "use_qk_norm", true);
  require_word(c, "qk_norm_type", "per_layer");
  require_flag(c, "use_routing_bias", true);
  require_word(c, "scoring_func", "sigmoid");
  for (int64_t kind : c.integers_or("attn_type_list", {}, 0, 1 << 10))
    if (kind != 1) unsupported(c, "attn_type_list", std::to_string(kind), "1 (full attention)");
  if (const int64_t width = c.integer_or("shared_intermediate_size", 0, 0, kMaxDim); width != 0)
    unsupported(c, "shared_intermediate_size", std::to_string(width), "0");
  return m;
}

std::vector<TensorSpec> specs(const ModelConfig& m, const Checkpoint& checkpoint, ModelWeights& weights) {
  MoeNames released{.block = "block_sparse_moe.", .choice_bias = "e_score_correction_bias", .expert = {"w1", "w3", "w2"}};
  MoeNames renamed = released;  // the names that transformers 5 has in memory
  renamed.block = "mlp.";
  return decoder_specs({m, checkpoint, weights}, {released, renamed});
}

}  // namespace

const Family& minimax_m2_family() {
  static const Family family{"minimax_m2", read_config, specs, {}};
  return family;
}

}  // namespace lynx_rt
