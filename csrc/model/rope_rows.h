// Cosines and sines of rotary angles, one row for each position, in the backend's memory.
#pragma once
#include <vector>

#include "backend/backend.h"
#include "backend/device_array.h"
#include "model/rope.h"

namespace lynx_rt {

// Rows are computed when a position is first reached, so a long context that nobody uses costs no time, and no memory on the CPU,
// whose pages stay untouched. Angles are float32, as in transformers: at large positions the rounding of an angle exceeds any
// tolerance, so equal results need equal rounding.
class RopeRows {
 public:
  RopeRows(Backend& backend, const RopeConfig& config, int64_t max_positions);
  // Has rows for the positions below `num_positions`, rounded up to a few more, up to max_positions.
  void extend(int64_t num_positions);
  RopeTable table() const { return {cos_.get(), sin_.get(), dim_, interleaved_}; }

 private:
  Backend& backend_;
  int64_t dim_;
  bool interleaved_;
  RopeAngles angles_;
  DeviceArray<float> cos_, sin_;          // [max_positions, dim / 2], filled up to num_positions_
  std::vector<float> new_cos_, new_sin_;  // rows before they are copied to the backend's memory
  int64_t num_positions_ = 0, max_positions_;
};

}  // namespace lynx_rt
