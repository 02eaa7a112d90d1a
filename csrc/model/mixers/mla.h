// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434 section 2.1).
#pragma once
#include <vector>

#include "model/mixers/mixer.h"

namespace lynx_rt {

// H hidden size, A heads, D = nope + R columns of a query head, Dv of a value, L = kv_lora_rank, R = rope.dim, Q = q_lora_rank.
struct MlaWeights {
  WeightView q_proj;                                  // [A * D, H] where Q is 0; else the next four
  WeightView q_a_proj, q_a_bias, q_a_norm, q_b_proj;  // [Q, H], [Q], [Q], [A * D, Q]
  WeightView kv_a_proj, kv_a_bias, kv_a_norm;         // [L + R, H], [L + R], [L]
  std::vector<WeightView> k_absorb;                   // A matrices [L, nope]: the K rows of kv_b_proj, transposed
  std::vector<WeightView> v_absorb;                   // A matrices [Dv, L]: the V rows of kv_b_proj
  WeightView o_proj, o_bias;                          // [H, A * Dv], [H]
};

// Computes the absorbed form: keys and values stay the latent vectors of the pages; queries are projected into the latent space,
// and the attended vectors are projected back. Prefill uses this form too, so that a row has the same bits as in decode.
void mix(const MlaWeights& w, const MixerStep& step);

}  // namespace lynx_rt
