// The configuration of a decoder-only model: all that the model code needs, in the field's standard terms.
// model/families/<model_type>.cc fills it from config.json; the comments name the usual config keys.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "checkpoint/quantization_config.h"
#include "model/rope.h"
#include "model/vision/vision_config.h"

namespace lynx_rt {

enum class NormKind : uint8_t { kRms, kLayer };  // kLayer: LayerNorm with a bias

// The part of a layer in which the rows of a sequence see each other; each kind has a file in model/mixers/.
// kNone: a layer of an MLP or experts alone (Nemotron-H).
enum class MixerKind : uint8_t { kGqa, kMla, kGatedDelta, kKda, kMamba2, kShortConv, kNone };

struct LayerConfig {
  MixerKind mixer = MixerKind::kGqa;
  bool moe = false;          // experts instead of a dense MLP
  bool mlp = true;           // false: the layer is its mixer alone, without MLP or experts (Nemotron-H)
  int64_t window = 0;        // tokens that a query sees, itself included; 0 = all
  int64_t chunk = 0;         // positions of a chunk; a query sees no other chunk than its own; 0 = no chunks (Llama 4)
  int64_t num_kv_heads = 0;  // G of this layer; 0 = the model's; num_global_key_value_heads (Gemma 4)
  int64_t head_dim = 0;      // D of this layer; 0 = the model's; global_head_dim (Gemma 4)
  bool v_from_k = false;     // no v_proj: V is K before its norm and rope; attention_k_eq_v (Gemma 4)
  bool rope = true;          // false: no position embedding in this layer (Llama 4, no_rope_layers)
};

struct ModelConfig {
  std::string model_type;               // model_type
  int64_t hidden_size = 0;              // H; hidden_size
  int64_t num_layers = 0;               // num_hidden_layers
  int64_t vocab_size = 0;               // V; vocab_size
  int64_t intermediate_size = 0;        // width of the dense MLP; intermediate_size
  int64_t max_position_embeddings = 0;  // longest context, tokens; max_position_embeddings
  // Why max_position_embeddings is less than config.json's; "" where it is not.
  std::string context_limit;
  NormKind norm = NormKind::kRms;
  bool norm_offset = false;          // RMSNorm multiplies by 1 + weight (Qwen3-Next), that of DeltaNet's output excepted
  float rms_norm_eps = 1e-6f;        // also LayerNorm's; rms_norm_eps
  bool tie_word_embeddings = false;  // tie_word_embeddings
  bool lm_head_bias = false;         // lm_head_bias
  bool mlp_bias = false;             // biases of the dense MLP; mlp_bias
  float embedding_multiplier = 1;    // embedding_multiplier (Granite)
  float residual_multiplier = 1;     // on what a block adds to the residual stream; residual_multiplier (Granite)
  float logits_multiplier = 1;       // 1 / logits_scaling (Granite)
  float soft_cap = 0;                // bound of the logits; 0 = none; final_logit_softcapping (Gemma)
  // The outputs of attention, the MLP and the experts are normed before they are added to the residual stream (LayerWeights), and experts
  // have the dense MLP beside them, as a shared expert with norms of its own (Gemma 4).
  bool sandwich_norms = false;
  // The outputs of attention and the experts are normed, and their inputs are not (OLMo 2, FlexOlmo).
  bool output_norms = false;
  DType dtype = DType::kF32;           // dtype, or torch_dtype
  bool dtype_stated = false;           // false: absent or "auto"; read_model_config() then takes the file's
  QuantizationConfig quantization;     // quantization_config, compression_config: how the file's weights are to be decoded
  std::vector<int32_t> eos_token_ids;  // eos_token_id: a number, a list, or absent
  std::vector<LayerConfig> layers;     // [num_layers]

  // Attention.
  int64_t num_heads = 0;        // A; num_attention_heads
  int64_t num_kv_heads = 0;     // G; num_key_value_heads, absent = A
  int64_t head_dim = 0;         // D of q and k; head_dim, absent or null = H / A; with MLA nope + rope
  float attention_scale = 0;    // factor of the scores; 1 / sqrt(D) where the config states no other
  bool attention_bias = false;  // biases on the q, k, v projections; attention_bias
  bool output_bias = false;     // bias on the o projection
  bool attention_gate =
      false;  // q_proj has a gate for each column of q, by whose sigmoid the attended values are multiplied; attn_output_gate
  bool sinks = false;  // one more logit per head in the softmax's denominator (gpt-oss)
  QkNorm qk_norm = QkNorm::kNone;
  bool v_norm = false;  // each head of v is divided by its root mean square (Gemma 4)
  float clip_qkv = 0;   // q, k and v are clamped to +-clip_qkv; 0 = not; clip_qkv (OLMoE)
  RopeConfig rope;
  std::optional<RopeConfig> window_rope;  // of the layers with a window, where theirs differs; rope_parameters.sliding_attention
  // Pairs whose angle is by time, row and column of an image's token; zeros: one position for all; rope_parameters.mrope_section. Pair i has
  // the row where i % 3 = 1 and i < 3 * [1], the column where i % 3 = 2 and i < 3 * [2], else the time.
  std::array<int64_t, 3> mrope_section{};
  float temperature_floor = 0, temperature_scale = 0;  // in layers without rope (Llama 4): QkvPostArgs

  // Multi-head latent attention (DeepSeek, arXiv 2405.04434 section 2.1).
  int64_t kv_lora_rank = 0;       // kv_lora_rank
  int64_t q_lora_rank = 0;        // q_lora_rank, 0 = plain q_proj
  float latent_norm_eps = 1e-6f;  // of the norms of q's and kv's latent vectors; transformers leaves it at its default
  int64_t qk_nope_head_dim = 0;   // qk_nope_head_dim
  int64_t v_head_dim = 0;         // Dv, columns of a value head; D without MLA; v_head_dim

  DeltaShape
      delta;  // of layers with gated DeltaNet or KDA; linear_num_key_heads, linear_num_value_heads, linear_key_head_dim, ..
  bool delta_by_head = false;    // its projections lie by key head: in_proj_qkvz, in_proj_ba (Qwen3-Next)
  Mamba2Shape mamba;             // of layers with Mamba2; mamba_num_heads, mamba_head_dim, n_groups, ssm_state_size, conv_kernel
  float min_dt = 0, max_dt = 0;  // bounds of Mamba2's time steps; time_step_limit
  int64_t short_conv_width = 0;  // W of layers with a short convolution; conv_L_cache (LFM2)
  bool mixer_bias = false;       // biases of the projections of Mamba2 (use_bias) and of a short convolution (conv_bias)
  bool conv_bias = false;        // of the convolution of Mamba2 (use_conv_bias) and of a short convolution (conv_bias)

  // Mixture of experts; num_experts = 0 means a dense model.
  int64_t num_experts = 0;                        // E; num_experts, num_local_experts, n_routed_experts, moe_num_experts
  int64_t num_experts_per_tok = 0;                // k; num_experts_per_tok, moe_k, moe_topk
  int64_t moe_intermediate_size = 0;              // I; moe_intermediate_size, or intermediate_size
  RouterRule router;                              // num_experts and top_k are set by read_model_config(), bias by the decoder
  float router_multiplier = 1;                    // on the router's logits (Gemma 4: 1 / sqrt(H))
  bool router_bias = false;                       // bias of the router's logits (gpt-oss)
  bool choice_bias = false;                       // e_score_correction_bias: RouterRule::bias
  FfnRule ffn;                                    // what an expert computes; its expert_scale is set by the decoder
  Activation mlp_activation = Activation::kSilu;  // of the dense MLP and the shared expert; hidden_act, hidden_activation
  bool expert_bias = false;                       // biases of the experts (gpt-oss)
  int64_t shared_expert_width = 0;                // intermediate width of the expert that every token goes to; 0 = none
  bool shared_expert_gate = false;                // the shared expert is scaled by a sigmoid (Qwen2-MoE)

  std::optional<VisionConfig> vision;  // vision_config; whether the checkpoint has the tower is in ModelWeights::vision
  int32_t image_token_id = -1;         // stands for a row of an image; image_token_id, -1 where absent

  int64_t kv_heads_of(const LayerConfig& l) const { return l.num_kv_heads ? l.num_kv_heads : num_kv_heads; }
  int64_t head_dim_of(const LayerConfig& l) const { return l.head_dim ? l.head_dim : head_dim; }
  bool has_mixer(MixerKind kind) const {
    return std::any_of(layers.begin(), layers.end(), [&](const LayerConfig& l) { return l.mixer == kind; });
  }
  bool has_dense_mlp() const {
    return std::any_of(layers.begin(), layers.end(), [](const LayerConfig& l) { return l.mlp && !l.moe; });
  }
  int64_t num_moe_layers() const {
    return std::count_if(layers.begin(), layers.end(), [](const LayerConfig& l) { return l.moe; });
  }
};

}  // namespace lynx_rt
