// Mamba2 (arXiv 2405.21060): a selective state space, which keeps a state of constant size of a sequence.
#pragma once
#include "model/mixers/mixer.h"

namespace lynx_rt {

// H hidden size; A heads, C = ModelConfig::mamba.channels(), P = ModelConfig::mamba.values(), W inputs of the convolution.
struct Mamba2Weights {
  WeightView in_proj, in_bias;     // [P + C + A, H]: rows of the gate, of x, B and C, of dt; [P + C + A] or empty
  WeightView conv, conv_bias;      // [W, C] and [C] float32; the bias may be empty
  WeightView rate, dt_bias, skip;  // [A] float32; rate = -exp(A_log), skip = D
  WeightView norm;                 // [P]
  WeightView out_proj, out_bias;   // [H, P], [H] or empty
};

// Computes all projections in one product, runs the states through the rows, and adds the output projection.
void mix(const Mamba2Weights& w, const MixerStep& step);

}  // namespace lynx_rt
