// Parts shared by DeepSeek's families and by those that adopted them (GLM-4.5).
#pragma once
#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

// Reads the keys of multi-head latent attention: kv_lora_rank, q_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim. `m`
// must come from read_common() with qk_rope_head_dim as its head_dim key.
void read_latent_attention(const ConfigReader& config, ModelConfig& m);

// Reads which layers have experts (from first_k_dense_replace on, those whose number is a multiple of moe_layer_freq),
// n_routed_experts, n_shared_experts, moe_intermediate_size and routed_scaling_factor. `first_dense` and `scale` stand for
// first_k_dense_replace and routed_scaling_factor where the config lacks them; `default_top_k` is ExpertKeys'.
void read_deepseek_experts(const ConfigReader& config, int64_t first_dense, double scale, int64_t default_top_k, ModelConfig& m);
// Reads n_group, or what the key is called, and topk_group; where they are missing, there is one group.
void read_router_groups(const ConfigReader& config, ModelConfig& m, const std::string& n_group = "n_group");
// Reads the router of DeepSeek-V3 (arXiv 2412.19437 section 2.1.2): gates are sigmoids; experts are chosen, within groups, by the
// gate plus e_score_correction_bias.
void read_sigmoid_router(const ConfigReader& config, ModelConfig& m);

// Reads DeepSeek-V3 with sparse attention: index_topk says to how many tokens a row attends. Attention is dense up to there, and the
// context is cut there (ModelConfig::context_limit); which tokens a longer one would leave out is not computed.
ModelConfig read_sparse_deepseek(const ConfigReader& config, double default_rms_norm_eps);
// The tensors of the part that chooses those tokens.
const std::vector<std::string>& indexer_tensors();

}  // namespace lynx_rt
