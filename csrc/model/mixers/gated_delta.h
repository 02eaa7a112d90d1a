// Gated DeltaNet (arXiv 2412.06464): linear attention, which keeps a state of constant size of a sequence.
#pragma once
#include "model/mixers/mixer.h"

namespace lynx_rt {

// H hidden size, C = ModelConfig::delta.channels(), kh/vh key/value heads of dk/dv columns, r = vh / kh.
struct GatedDeltaWeights {
  // Either [q of all key heads, k of all, v of all value heads], and z, b and a alone; or, where in_proj_z is empty, rows by key head:
  // in_proj_qkv has dk of q, dk of k, r dv of v and r dv of z, and in_proj_b has r of b and r of a (Qwen3-Next).
  WeightView in_proj_qkv;           // [C, H]; [C + vh * dv, H]
  WeightView in_proj_z;             // [vh * dv, H]; empty
  WeightView in_proj_b, in_proj_a;  // [vh, H] each; [2 vh, H], and empty
  WeightView conv[3];               // of q, k and v: [W, their columns] float32
  WeightView rate, dt_bias;         // [vh] float32; rate = -exp(A_log)
  WeightView norm;                  // [dv]
  WeightView out_proj;              // [H, vh * dv]
};

// Computes all projections in one product, runs the states through the rows, and adds the output projection.
void mix(const GatedDeltaWeights& w, const MixerStep& step);

}  // namespace lynx_rt
