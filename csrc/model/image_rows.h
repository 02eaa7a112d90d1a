// The rows of a step that stand for parts of images.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

namespace lynx_rt {

struct ImageRows {
  // Consecutive rows of one image.
  struct Run {
    int64_t first_row, num_rows;
    const float* output;  // [num_rows, VisionConfig::out_columns()] of VisionTower::output(), in the backend's memory
  };
  std::vector<Run> runs;
  // Time, row and column by which the keys of a row are rotated (M-RoPE), of all rows of `runs` in order. Row i of them has row
  // Decoder::first_image_rope_row() + i of the rope table.
  std::vector<std::array<int32_t, 3>> positions;
};

}  // namespace lynx_rt
