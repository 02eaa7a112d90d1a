// The patches of an image, kept small while its request waits for the tower.
#pragma once
#include <cstdint>
#include <vector>

#include "model/vision/vision_config.h"

namespace lynx_rt {

// Gives back to the bit what it was made of. Pixels of 8 bits have at most 256 different values in a channel, and a still image is each of
// its frames; such patches are kept as one byte per pixel, an eighth of two float32 frames. Others are kept as they are.
class ImagePatches {
 public:
  ImagePatches() = default;  // none
  // values [rows, in_channels, temporal_patch_size, patch_size^2].
  ImagePatches(const VisionConfig& config, std::vector<float> values);

  // Writes rows [first, first + count) to out [count, patch_columns()].
  void copy_rows(int64_t first, int64_t count, float* out) const;
  int64_t bytes() const;  // of memory

 private:
  bool encode(const std::vector<float>& values);

  int64_t channels_ = 0, frames_ = 0, area_ = 0;  // area: pixels of a patch
  std::vector<float> values_;                     // empty: codes_ has them
  std::vector<float> table_;                      // [in_channels, 256]
  std::vector<uint8_t> codes_;                    // [rows, in_channels, area], indices into a channel's part of the table
};

}  // namespace lynx_rt
