// The vision tower of Qwen3-VL and Qwen3.5: patches of an image to rows of the text model. Knows no requests and no device.
#pragma once
#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "backend/device_array.h"
#include "model/vision/vision_config.h"
#include "model/vision/vision_weights.h"

namespace lynx_rt {

// One image at a time: begin(), advance() until it returns true, output(). Each call is a step of its own (Backend::begin_step()), so none
// may lie within a step of the decoder. The result depends on the image alone, not on how advance() cuts the work. Thread-safety: one call
// at a time. Source: transformers' qwen3_vl_moe. Test: tests/model/test_vision_tower.py.
class VisionTower {
 public:
  // `config` and `weights` must outlive the tower. max_patches bounds the patches of an image, and with them the memory, which is
  // allocated by the first begin() that needs it.
  VisionTower(Backend& backend, const VisionConfig& config, const VisionWeights& weights, int64_t max_patches);

  // Starts an image. patches [grid_height * grid_width, patch_columns()] in host memory, in the order of merge blocks: block row, block
  // column, row in the block, column in the block. Throws kInvalidArgument for a grid that is empty, that is no multiple of merge_size, or
  // that has more than max_patches patches.
  void begin(const float* patches, int64_t grid_height, int64_t grid_width);
  // Runs at most `num_blocks` blocks, the mergers with those that they follow. Returns whether all are done.
  bool advance(int64_t num_blocks);
  // Copies the result to out [num_rows(), out_columns()] in the backend's memory: the merger's row, then those of deepstack.
  void output(float* out);

  int64_t num_rows() const;  // of the result: grid_height * grid_width / merge_size^2
  // Bytes that an image of so many patches needs beside its result.
  int64_t bytes(int64_t num_patches) const;
};

}  // namespace lynx_rt
