// Cosines and sines of rotary angles, one row for each position, in the backend's memory; behind them, rows whose pairs of columns have
// positions of their own.
#pragma once
#include <array>
#include <span>
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
  // max_composed: rows that compose() may make.
  RopeRows(Backend& backend, const RopeConfig& config, int64_t max_positions, int64_t max_composed = 0);
  // Has rows for the positions below `num_positions`, rounded up to a few more, up to max_positions.
  void extend(int64_t num_positions);
  // Makes row max_positions + i from positions[i] (time, row, column of a token of an image) until the next call. Pair j has the angle by row
  // where j % 3 is 1 and j < 3 sections[1], by column where j % 3 is 2 and j < 3 sections[2], else by time: interleaved M-RoPE. Source:
  // transformers' qwen3_vl_moe.
  void compose(std::span<const std::array<int32_t, 3>> positions, const std::array<int64_t, 3>& sections);
  RopeTable table() const { return {cos_.get(), sin_.get(), dim_, interleaved_}; }

 private:
  // Sets pair i of a row in new_cos_ and new_sin_.
  void set_angle(int64_t row, size_t pair, int64_t position);
  void write_rows(int64_t first, int64_t count);  // from new_cos_ and new_sin_

  Backend& backend_;
  int64_t dim_;
  bool interleaved_;
  RopeAngles angles_;
  DeviceArray<float> cos_, sin_;          // [max_positions + max_composed, dim / 2], filled up to num_positions_
  std::vector<float> new_cos_, new_sin_;  // rows before they are copied to the backend's memory
  int64_t num_positions_ = 0, max_positions_, max_composed_;
};

}  // namespace lynx_rt
