// The weights of a vision tower.
#pragma once
#include <vector>

#include "base/expert_weights.h"

namespace lynx_rt {

// h hidden size, F width of the MLP; the MLPs have no `up`: `gate` is linear_fc1, `down` is linear_fc2.
struct VisionBlockWeights {
  WeightView norm1, norm1_bias;  // [h]
  WeightView qkv, qkv_bias;      // [3 h, h], [3 h]: q of all heads, then k, then v
  WeightView proj, proj_bias;    // [h, h], [h]
  WeightView norm2, norm2_bias;  // [h]
  ExpertWeights mlp;             // width F
};

// Joins merge_size^2 rows to one.
struct VisionMergerWeights {
  WeightView norm, norm_bias;  // [h] in the last merger, [h merge_size^2] in those of deepstack
  ExpertWeights mlp;           // [h merge_size^2, h merge_size^2], [out_hidden_size, h merge_size^2]
};

struct VisionWeights {
  WeightView patch, patch_bias;  // [h, patch_columns], [h]
  WeightView positions;          // [num_positions, h]
  std::vector<VisionBlockWeights> blocks;
  VisionMergerWeights merger;
  std::vector<VisionMergerWeights> deepstack;
};

}  // namespace lynx_rt
