// The vision tower of Qwen3-VL and Qwen3.5: patches of an image to rows of the text model. Knows no requests and no device.
#pragma once
#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "backend/device_array.h"
#include "model/vision/image_patches.h"
#include "model/vision/vision_config.h"
#include "model/vision/vision_weights.h"

namespace lynx_rt {

// One image at a time: begin(), advance() until it returns true, output(). begin() and advance() are steps of their own
// (Backend::begin_step()), so neither may lie within a step of the decoder. The result depends on the image alone, to the bit, not on how
// advance() cuts the work. Thread-safety: one call at a time. Source: transformers' qwen3_vl_moe. Test: tests/model/test_vision_tower.py.
class VisionTower {
 public:
  // `config` and `weights` (placed) must outlive the tower. Allocates bytes(config, .., max_patches) and a little; on the CPU an image takes
  // the part that it needs.
  VisionTower(Backend& backend, const VisionConfig& config, const VisionWeights& weights, int64_t max_patches);
  // Bytes that a tower allocates for `max_patches` patches. Without its memory for max_rows rows, which limits() sets.
  static int64_t bytes(const VisionConfig& config, const Backend& backend, int64_t max_patches);
  // For Backend::reserve().
  static TowerLimits limits(const VisionConfig& config);

  // Starts an image, whose grid_height * grid_width patches are in the order of merge blocks: block row, block column, row in the block,
  // column in the block. Throws kInvalidArgument for a grid that is empty, that is no multiple of merge_size, or that has more than
  // max_patches patches.
  void begin(const ImagePatches& patches, int64_t grid_height, int64_t grid_width);
  // Runs at most `num_blocks` blocks, the mergers with those that they follow. Returns whether all are done.
  bool advance(int64_t num_blocks);
  // Copies the result to out [num_rows(), out_columns()] in the backend's memory: the merger's row, then those of deepstack. Throws
  // kInternal before all blocks are done.
  void output(float* out);

  int64_t num_rows() const { return num_patches_ / merged_; }  // of the result: grid_height * grid_width / merge_size^2
  int64_t max_patches() const { return max_patches_; }

 private:
  struct Patch {  // place in the image's grid
    int64_t row, column;
  };
  std::vector<Patch> places(int64_t grid_height, int64_t grid_width) const;
  // Writes the interpolated rows of the position table to x, and the rotary angles.
  void write_positions(const std::vector<Patch>& places, int64_t grid_height, int64_t grid_width);
  void run_block(const VisionBlockWeights& w, const BatchView& batch);
  void run_merger(const VisionMergerWeights& w, bool norm_merged, int64_t out_column);
  // Calls visit(first, count) for parts of the patches, each of whole merge blocks.
  template <class Visit>
  void for_each_part(Visit visit);

  Backend& backend_;
  const VisionConfig& config_;
  const VisionWeights& weights_;
  int64_t max_patches_, merged_, part_;  // merged_: patches of a merge block; part_: rows that products take at a time
  std::vector<float> table_;             // [num_positions, h]
  std::vector<float> inverse_;           // [D / 4] radians per row or column
  DeviceArray<float> x_;                 // [N, h] residual stream
  DeviceArray<float> qkv_;               // [N, 3 h]
  DeviceArray<float> cos_, sin_;         // [N, D / 2]
  DeviceArray<char> k_, v_;              // pages of one block
  DeviceArray<float> patches_;           // [part, patch_columns]
  DeviceArray<float> result_;            // [N / merged, out_columns]
  Activations attended_;                 // [N, h]
  Activations normed_;                   // [part, h]
  Activations normed_blocks_;            // [part / merged, merged h]
  KvCacheView cache_;
  std::vector<int32_t> positions_, pages_;  // 0, 1, ..: of the rows, and of the pages
  std::vector<int64_t> slots_;
  int32_t query_start_[2] = {0, 0};
  int64_t num_patches_ = 0, next_block_ = 0;
};

}  // namespace lynx_rt
