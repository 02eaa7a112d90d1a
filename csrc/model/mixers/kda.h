// Kimi delta attention (arXiv 2510.26692): gated DeltaNet whose state decays by channel.
#pragma once
#include "model/mixers/mixer.h"

namespace lynx_rt {

// H hidden size, A heads of D columns, for keys as for values; W inputs of the convolution.
struct KdaWeights {
  WeightView q_proj, k_proj, v_proj;  // [A * D, H]
  WeightView b_proj;                  // [A, H]
  WeightView f_a_proj, f_b_proj;      // [D, H], [A * D, D]: of the decay
  WeightView g_a_proj, g_b_proj;      // [D, H], [A * D, D]: of the output's gate
  WeightView conv[3];                 // of q, k and v: [W, A * D] float32
  WeightView rate, dt_bias;           // [A], [A * D] float32; rate = -exp(A_log)
  WeightView norm;                    // [D]
  WeightView o_proj;                  // [H, A * D]
};

// Computes the projections, those of decay and gate through D columns, runs the states through the rows, and adds the output projection.
void mix(const KdaWeights& w, const MixerStep& step);

}  // namespace lynx_rt
