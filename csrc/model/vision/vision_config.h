// The configuration of a vision tower of the Qwen3-VL kind. The comments name keys of vision_config in config.json.
#pragma once
#include <cstdint>
#include <vector>

namespace lynx_rt {

struct VisionConfig {
  int64_t depth = 0;                // blocks; depth
  int64_t hidden_size = 0;          // h; hidden_size
  int64_t intermediate_size = 0;    // F, width of a block's MLP; intermediate_size
  int64_t num_heads = 0;            // num_heads; each has h / num_heads columns, a multiple of 4
  int64_t in_channels = 0;          // in_channels
  int64_t patch_size = 0;           // pixels of a patch's side; patch_size
  int64_t temporal_patch_size = 0;  // frames of a patch; temporal_patch_size
  int64_t merge_size = 0;           // merge_size^2 patches become one row of the output; spatial_merge_size
  int64_t num_positions = 0;        // rows of the position table, a square grid; num_position_embeddings
  int64_t out_hidden_size = 0;      // columns of a merger's row, H of the text model; out_hidden_size
  double rope_theta = 10000;        // rope_parameters.rope_theta
  // Blocks, rising, after which rows are merged for the text model's layers 0, 1, ..; deepstack_visual_indexes.
  std::vector<int64_t> deepstack;

  int64_t head_dim() const { return hidden_size / num_heads; }
  int64_t merged_columns() const { return hidden_size * merge_size * merge_size; }  // of a row that enters a merger
  int64_t patch_columns() const { return in_channels * temporal_patch_size * patch_size * patch_size; }
  int64_t out_columns() const { return (1 + int64_t(deepstack.size())) * out_hidden_size; }
};

}  // namespace lynx_rt
