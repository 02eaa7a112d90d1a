// A gated short convolution (LFM2): a layer sees the last few tokens alone.
#pragma once
#include "model/mixers/mixer.h"

namespace lynx_rt {

// H hidden size, W inputs of the convolution; biases may be empty.
struct ShortConvWeights {
  WeightView in_proj, in_bias;    // [3 H, H]: rows of b, c and x; [3 H]
  WeightView conv, conv_bias;     // [W, H], [H] float32
  WeightView out_proj, out_bias;  // [H, H], [H]
};

// Computes b, c and x in one product, convolves b * x, multiplies by c, and adds the output projection.
void mix(const ShortConvWeights& w, const MixerStep& step);

}  // namespace lynx_rt
