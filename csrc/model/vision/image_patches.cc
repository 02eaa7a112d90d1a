#include "model/vision/image_patches.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <utility>

namespace lynx_rt {

namespace {

// Numbers different values in the order in which they come, up to 256 of them. -0 and 0 are different.
class Codes {
 public:
  explicit Codes(float* values) : values_(values) {}

  // Returns the number of the value, -1 where it would be the 257th.
  int of(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    for (uint32_t i = bits * 0x9E3779B1u >> 20;; i = (i + 1) % kSlots) {
      const int code = slots_[i] - 1;
      if (code < 0) {
        if (count_ == 256) return -1;
        values_[count_] = value;
        slots_[i] = uint16_t(count_ + 1);
        return count_++;
      }
      if (std::bit_cast<uint32_t>(values_[code]) == bits) return code;
    }
  }

 private:
  static constexpr uint32_t kSlots = 1 << 12;  // so many that a value is nearly always in its first one
  std::array<uint16_t, kSlots> slots_{};       // of a hash table: code + 1, 0 = free
  float* values_;                              // by code
  int count_ = 0;
};

}  // namespace

ImagePatches::ImagePatches(const VisionConfig& config, std::vector<float> values)
    : channels_(config.in_channels), frames_(config.temporal_patch_size), area_(config.patch_size * config.patch_size) {
  if (encode(values)) return;
  codes_ = {};
  table_ = {};
  values_ = std::move(values);
}

bool ImagePatches::encode(const std::vector<float>& values) {
  const int64_t channel = frames_ * area_;
  const size_t frame_bytes = size_t(area_) * sizeof(float);
  table_.resize(size_t(channels_) * 256);
  codes_.resize(values.size() / size_t(frames_));
  uint8_t* next = codes_.data();
  std::vector<Codes> codes;
  for (int64_t c = 0; c < channels_; ++c) codes.emplace_back(&table_[size_t(c * 256)]);
  for (int64_t at = 0; at < int64_t(values.size()); at += channel) {
    const float* first = &values[size_t(at)];
    Codes& of_channel = codes[size_t(at / channel % channels_)];
    for (int64_t f = 1; f < frames_; ++f)
      if (std::memcmp(first, first + f * area_, frame_bytes) != 0) return false;
    for (int64_t i = 0; i < area_; ++i) {
      const int code = of_channel.of(first[i]);
      if (code < 0) return false;
      *next++ = uint8_t(code);
    }
  }
  return true;
}

void ImagePatches::copy_rows(int64_t first, int64_t count, float* out) const {
  const int64_t columns = channels_ * frames_ * area_;
  if (!values_.empty()) {
    std::copy_n(values_.data() + first * columns, count * columns, out);
    return;
  }
  const uint8_t* code = codes_.data() + first * channels_ * area_;
  for (int64_t i = 0; i < count * channels_; ++i, code += area_) {
    const float* values = &table_[size_t(i % channels_ * 256)];
    const float* frame = out;
    for (int64_t j = 0; j < area_; ++j) *out++ = values[code[j]];
    for (int64_t f = 1; f < frames_; ++f) out = std::copy_n(frame, area_, out);
  }
}

int64_t ImagePatches::bytes() const { return int64_t((values_.size() + table_.size()) * sizeof(float) + codes_.size()); }

}  // namespace lynx_rt
