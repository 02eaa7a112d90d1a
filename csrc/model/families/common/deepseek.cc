#include "model/families/common/deepseek.h"

#include <cmath>

#include "base/error.h"
#include "checkpoint/json.h"

namespace lynx_rt {

void read_latent_attention(const ConfigReader& c, ModelConfig& m) {
  for (LayerConfig& layer : m.layers) layer.mixer = MixerKind::kMla;
  m.kv_lora_rank = c.integer("kv_lora_rank", 1, kMaxDim);
  m.q_lora_rank = c.integer_or("q_lora_rank", 0, 1, kMaxDim);
  m.qk_nope_head_dim = c.integer("qk_nope_head_dim", 1, 1 << 16);
  const int64_t rope_dim = c.integer("qk_rope_head_dim", 2, 1 << 16);
  m.v_head_dim = c.integer("v_head_dim", 1, 1 << 16);
  c.has("head_dim");  // transformers 5 writes the rotated columns here, older configs nothing
  m.head_dim = m.qk_nope_head_dim + rope_dim;
  if (m.num_kv_heads != m.num_heads)
    c.fail_key("num_key_value_heads",
               str_cat("expected num_attention_heads ", m.num_heads, " (all heads share one latent), got ", m.num_kv_heads));
  if (m.num_layers * m.num_heads > kMaxLatentHeads)
    c.fail_key("num_attention_heads", str_cat("num_hidden_layers * num_attention_heads = ", m.num_layers * m.num_heads,
                                              " is over the limit of ", kMaxLatentHeads));
  m.attention_bias = m.output_bias = c.boolean_or("attention_bias", false);
  // YaRN divides cosines and sines, and so only the rotated columns, by mscale_all_dim's factor; the scores are multiplied by its
  // square here, which reaches all columns.
  const double mscale =
      m.rope.kind != RopeKind::kDefault && m.rope.mscale_all_dim != 0 ? yarn_mscale(m.rope.factor, m.rope.mscale_all_dim) : 1;
  m.attention_scale = float(mscale * mscale / std::sqrt(double(m.head_dim)));
}

void read_deepseek_experts(const ConfigReader& c, int64_t first_dense, double scale, int64_t default_top_k, ModelConfig& m) {
  read_experts(c, {.count = {"n_routed_experts"}, .default_top_k = default_top_k}, m);
  const int64_t shared = c.integer_or("n_shared_experts", 0, 0, 1 << 10);
  m.shared_expert_width = shared * m.moe_intermediate_size;
  m.router.scale = float(c.number_or("routed_scaling_factor", scale, 0.0, 1e6));
  first_dense = c.integer_or("first_k_dense_replace", first_dense, 0, kMaxLayers);
  const int64_t freq = c.integer_or("moe_layer_freq", 1, 1, kMaxLayers);
  for (int64_t l = 0; l < m.num_layers; ++l) m.layers[size_t(l)].moe = l >= first_dense && l % freq == 0;
  require_mlp_width(c, m);
}

void read_router_groups(const ConfigReader& c, ModelConfig& m, const std::string& n_group) {
  const int64_t groups = c.integer_or(n_group, 1, 1, m.num_experts);
  const int64_t top = c.integer_or("topk_group", 1, 1, groups), of_group = m.num_experts / groups;
  if (m.num_experts % groups != 0)
    c.fail_key(n_group, str_cat("expected a divisor of the experts' number ", m.num_experts, ", got ", groups));
  if (top * of_group < m.num_experts_per_tok)
    c.fail_key("topk_group", str_cat("expected num_experts_per_tok ", m.num_experts_per_tok, " experts in the ", top,
                                     " best groups, which have ", top * of_group));
  m.router.num_groups = int(groups);
  m.router.top_groups = int(top);
}

void read_sigmoid_router(const ConfigReader& c, ModelConfig& m) {
  require_word(c, "scoring_func", "sigmoid");
  require_word(c, "topk_method", "noaux_tc");
  m.router.kind = RouterKind::kSigmoid;
  m.router.norm_topk = c.boolean_or("norm_topk_prob", true);
  m.choice_bias = true;
  read_router_groups(c, m);
  m.router.group_top2 = true;
  if (m.num_experts < 2 * m.router.num_groups)
    c.fail_key("n_group", str_cat("expected groups of two or more of n_routed_experts ", m.num_experts, ", got ",
                                  m.router.num_groups, " groups"));
}

namespace {
void read_indexer(const ConfigReader& c, ModelConfig& m) {
  const int64_t top = c.integer_or("index_topk", 2048, 1, 1 << 28);
  if (top < m.max_position_embeddings) {
    m.context_limit = str_cat("max_position_embeddings: the model's ", m.max_position_embeddings,
                              " are cut to index_topk = ", top, ": sparse attention, which begins there, is not supported");
    m.max_position_embeddings = top;
  }
  for (const std::string& type : c.strings_or("layer_types", {}))
    if (type != "indexed_attention") unsupported(c, "layer_types", quote(type), "indexed_attention");
  require_flag(c, "rope_interleave", true);
  require_flag(c, "mlp_bias", false);
  // Keys of the choice of tokens.
  for (const char* key : {"index_head_dim", "index_n_heads", "indexer_types", "index_topk_freq", "index_skip_topk_offset",
                          "index_topk_pattern", "indexer_rope_interleave"})
    c.has(key);
}
}  // namespace

ModelConfig read_sparse_deepseek(const ConfigReader& c, double default_rms_norm_eps) {
  ModelConfig m = read_common(c, {.rms_norm_eps = default_rms_norm_eps, .head_dim = "qk_rope_head_dim"});
  read_latent_attention(c, m);
  m.rope.interleaved = true;
  read_deepseek_experts(c, 3, 2.5, 8, m);
  read_mlp_layer_types(c, m);
  read_sigmoid_router(c, m);
  read_indexer(c, m);
  return m;
}

const std::vector<std::string>& indexer_tensors() {
  static const std::vector<std::string> names = {"*.self_attn.indexer.*"};
  return names;
}

}  // namespace lynx_rt
