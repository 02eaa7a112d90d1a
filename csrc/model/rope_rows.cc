#include "model/rope_rows.h"

#include <algorithm>
#include <cmath>

namespace lynx_rt {

namespace {

constexpr int64_t kRows = 64;  // rows that are added at a time

}  // namespace

RopeRows::RopeRows(Backend& backend, const RopeConfig& config, int64_t max_positions)
    : backend_(backend),
      dim_(config.dim),
      interleaved_(config.interleaved),
      angles_(rope_angles(config, max_positions)),
      cos_(backend, checked_mul(max_positions, dim_ / 2, "rope"), "rope"),
      sin_(backend, checked_mul(max_positions, dim_ / 2, "rope"), "rope"),
      new_cos_(size_t(kRows * (dim_ / 2))),
      new_sin_(new_cos_.size()),
      max_positions_(max_positions) {}

void RopeRows::extend(int64_t num_positions) {
  const int64_t half = int64_t(angles_.inverse.size());
  while (num_positions_ < num_positions) {
    const int64_t count = std::min(kRows, max_positions_ - num_positions_);
    for (int64_t p = 0; p < count; ++p) {
      for (int64_t i = 0; i < half; ++i) {
        const double angle = double(float(num_positions_ + p) * angles_.inverse[size_t(i)]);
        new_cos_[size_t(p * half + i)] = float(std::cos(angle)) * angles_.factor;
        new_sin_[size_t(p * half + i)] = float(std::sin(angle)) * angles_.factor;
      }
    }
    backend_.write(cos_.get() + num_positions_ * half, new_cos_.data(), count * half * int64_t(sizeof(float)));
    backend_.write(sin_.get() + num_positions_ * half, new_sin_.data(), count * half * int64_t(sizeof(float)));
    num_positions_ += count;
  }
}

}  // namespace lynx_rt
