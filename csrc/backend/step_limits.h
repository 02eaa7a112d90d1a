// What a model's steps are at most.
#pragma once
#include <cstdint>

namespace lynx_rt {

// Upper bounds of the sizes of a vision tower's steps, which have one sequence, no experts and no logits.
struct TowerLimits {
  int64_t max_rows = 0;     // of mlp(), and of linear() on rows that neither a norm nor attention() has written; 0 = no tower
  int64_t max_columns = 0;  // columns of such a row
  int64_t mlp_width = 0;
  int64_t head_dim = 0;
};

// Upper bounds of the sizes of a model's steps, from which a backend allocates its scratch memory.
struct StepLimits {
  int64_t max_rows = 0;        // T
  int64_t max_logit_rows = 0;  // rows of one logits() or sample() call
  int64_t hidden_size = 0;     // H
  int64_t num_heads = 0;       // A
  int64_t num_kv_heads = 0;    // G, the fewest of any layer
  int64_t head_dim = 0;        // D of the KV cache
  int64_t v_head_dim = 0;      // Dv
  int64_t max_columns = 0;     // columns of a row that enters linear() or head_linear(), all heads together
  int64_t num_experts = 0;     // E; 0 = no experts
  int64_t top_k = 0;           // k
  int64_t expert_width = 0;    // I
  int64_t mlp_width = 0;       // width of the dense MLP; 0 = none
  int64_t num_moe_layers = 0;  // route() calls of one step
  int64_t vocab_size = 0;      // V
  TowerLimits tower;           // its steps may have more rows than max_rows
};

}  // namespace lynx_rt
