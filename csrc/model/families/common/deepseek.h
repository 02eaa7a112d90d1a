// What DeepSeek's families, and those that took its parts over (GLM-4.5), share.
#pragma once
#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

// Multi-head latent attention: kv_lora_rank, q_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim. `m` comes from
// read_common() with that key as head_dim.
void read_latent_attention(const ConfigReader& config, ModelConfig& m);
// self_attn.{q_proj or q_a_proj, q_a_layernorm, q_b_proj}, kv_a_proj_with_mqa, kv_a_layernorm, kv_b_proj, o_proj.
void add_latent_attention(WeightTable& table, int64_t l);

// Experts in all layers from first_k_dense_replace on (or that key's fallback), every moe_layer_freq-th of them;
// n_routed_experts, n_shared_experts, moe_intermediate_size, routed_scaling_factor.
// default_top_k: of ExpertKeys.
void read_deepseek_experts(const ConfigReader& config, int64_t first_dense, double scale, int64_t default_top_k, ModelConfig& m);
// n_group and topk_group, where missing one group.
void read_router_groups(const ConfigReader& config, ModelConfig& m);
// Gates are sigmoids, chosen by them plus e_score_correction_bias within groups (DeepSeek-V3, arXiv 2412.19437 section 2.1.2).
void read_sigmoid_router(const ConfigReader& config, ModelConfig& m);
// mlp: gate (with its bias), experts, shared_experts; or the dense MLP.
void add_deepseek_mlp(WeightTable& table, int64_t l);

}  // namespace lynx_rt
