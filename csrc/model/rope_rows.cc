#include "model/rope_rows.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace lynx_rt {

namespace {

constexpr int64_t kRows = 64;  // rows that are added at a time

}  // namespace

RopeRows::RopeRows(Backend& backend, const RopeConfig& config, int64_t max_positions, int64_t max_composed)
    : backend_(backend),
      dim_(config.dim),
      interleaved_(config.interleaved),
      angles_(rope_angles(config, max_positions)),
      cos_(backend, checked_mul(max_positions + max_composed, dim_ / 2, "rope"), "rope"),
      sin_(backend, checked_mul(max_positions + max_composed, dim_ / 2, "rope"), "rope"),
      new_cos_(size_t(kRows * (dim_ / 2))),
      new_sin_(new_cos_.size()),
      max_positions_(max_positions),
      max_composed_(max_composed) {}

void RopeRows::set_angle(int64_t row, size_t pair, int64_t position) {
  const double angle = double(float(position) * angles_.inverse[pair]);
  const size_t at = size_t(row) * angles_.inverse.size() + pair;
  new_cos_[at] = float(std::cos(angle)) * angles_.factor;
  new_sin_[at] = float(std::sin(angle)) * angles_.factor;
}

void RopeRows::write_rows(int64_t first, int64_t count) {
  const int64_t half = int64_t(angles_.inverse.size());
  backend_.write(cos_.get() + first * half, new_cos_.data(), count * half * int64_t(sizeof(float)));
  backend_.write(sin_.get() + first * half, new_sin_.data(), count * half * int64_t(sizeof(float)));
}

void RopeRows::extend(int64_t num_positions) {
  while (num_positions_ < num_positions) {
    const int64_t count = std::min(kRows, max_positions_ - num_positions_);
    for (int64_t p = 0; p < count; ++p)
      for (size_t i = 0; i < angles_.inverse.size(); ++i) set_angle(p, i, num_positions_ + p);
    write_rows(num_positions_, count);
    num_positions_ += count;
  }
}

void RopeRows::compose(std::span<const std::array<int32_t, 3>> positions, const std::array<int64_t, 3>& sections) {
  const int64_t total = int64_t(positions.size());
  if (total > max_composed_) invalid("positions", "expected at most ", max_composed_, " rows of images, got ", total);
  for (int64_t begin = 0; begin < total; begin += kRows) {
    const int64_t count = std::min(kRows, total - begin);
    for (int64_t p = 0; p < count; ++p)
      for (size_t i = 0; i < angles_.inverse.size(); ++i) {
        const size_t axis = i % 3;
        const bool in_section = axis > 0 && int64_t(i) < 3 * sections[axis];
        set_angle(p, i, positions[size_t(begin + p)][in_section ? axis : 0]);
      }
    write_rows(max_positions_ + begin, count);
  }
}

}  // namespace lynx_rt
