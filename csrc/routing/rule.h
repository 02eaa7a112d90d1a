// Router rules: how a model's own routing chooses and weighs the experts of a row.
#pragma once
#include <cstdint>
#include <string>

namespace lynx_rt {

// How router logits become gates, by which a row's experts are chosen and weighed.
enum class RouterKind : uint8_t {
  kSoftmax,      // gates are the softmax of the logits over all experts
  kSigmoid,      // gates are sigmoids of the logits
  kSparsemixer,  // Phi-MoE at inference: two choices, each weighed by its softmax probability among the experts near it
                 // (arXiv 2409.12136 section 2.1); k is 2, never normalised
};

// A model's own routing rule. Its members cover seven kinds of routers: Mixtral, Qwen2-MoE, gpt-oss, DeepSeek-V2, DeepSeek-V3,
// Ernie and MiniMax, Phi-MoE. Within its best groups, a row takes the k experts with the largest gate + bias, ties to the lower
// expert. Their weights are the gates (without bias), divided by their sum where the rule normalises, times `scale`. Top-k before
// softmax (gpt-oss, Granite) is kSoftmax, normalised.
struct RouterRule {
  int num_experts = 0;    // E
  int top_k = 0;          // k
  bool norm_topk = true;  // divide the chosen gates by their sum
  RouterKind kind = RouterKind::kSoftmax;
  const float* bias = nullptr;  // [E] in the backend's memory; finite; null = none (e_score_correction_bias)
  int num_groups = 1;           // groups of E / num_groups consecutive experts; a row takes experts of its best groups alone
  int top_groups = 1;           // number of best groups; top_groups * E / num_groups >= k (topk_group)
  bool group_top2 = false;      // a group's score: true = the sum of its two best gate + bias, false = the best
  float scale = 1;              // factor of all weights (routed_scaling_factor)
  float min_sum = 0;            // lower bound of norm_topk's divisor
  float jitter = 0.01f;         // kSparsemixer (router_jitter_noise)
};
// Throws kInvalidArgument (field router) naming the member that does not fit the others.
void check_rule(const RouterRule& rule);
RouterKind parse_router_kind(const std::string& name);  // "softmax", "sigmoid", "sparsemixer"; throws kInvalidArgument
std::string to_string(RouterKind kind);

}  // namespace lynx_rt
