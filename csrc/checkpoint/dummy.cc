#include "checkpoint/dummy.h"

#include <algorithm>
#include <cstring>

namespace lynx_rt {

namespace {

constexpr int64_t kStart = 64;  // between the starts of tensors that share a block

uint32_t bits_of(float v, DType dtype) {
  if (dtype == DType::kBF16) return f32_to_bf16(v);
  if (dtype == DType::kF16) return f32_to_f16(v);
  return std::bit_cast<uint32_t>(v);
}

// Bytes [start, start + bytes) of one endless row of values.
void fill(uint8_t* to, int64_t start, int64_t bytes, DType dtype) {
  // Few values, repeated; a prime number of them, so that no two rows of a usual length are alike. Drawing each value anew would
  // take a minute for a large model.
  constexpr int64_t kPeriod = 65521;
  const int64_t size = dtype_size(dtype);
  std::vector<uint8_t> period(size_t(kPeriod * size));
  uint32_t state = 0x9e3779b9u;
  for (int64_t i = 0; i < kPeriod; ++i) {
    state = state * 1664525u + 1013904223u;  // Numerical Recipes, "quick and dirty" generators
    const float uniform = float(state >> 8) * 0x1p-24f - 0.5f;
    const uint32_t bits = bits_of(uniform * 0.0692820323f, dtype);  // 0.02 * sqrt(12)
    std::memcpy(period.data() + i * size, &bits, size_t(size));
  }
  for (int64_t done = 0; done < bytes;) {
    const int64_t from = (start + done) % int64_t(period.size()), count = std::min(int64_t(period.size()) - from, bytes - done);
    std::memcpy(to + done, period.data() + from, size_t(count));
    done += count;
  }
}

}  // namespace

OwnedWeights dummy_weights(const std::vector<TensorSpec>& specs, DType dtype, bool shared) {
  OwnedWeights owned;
  const auto bytes_of = [&](const TensorSpec& spec) {
    int64_t bytes = dtype_size(dtype);
    for (int64_t d : spec.shape) bytes = checked_mul(bytes, d, "dummy weights");
    return bytes;
  };
  int64_t largest = 0;
  for (const TensorSpec& spec : specs)
    if (spec.shape.size() > 1) largest = std::max(largest, bytes_of(spec));
  uint8_t* block = nullptr;
  int64_t next = 0;
  if (shared) {
    const int64_t bytes = largest + int64_t(specs.size()) * kStart;
    owned.push_back(std::make_unique_for_overwrite<uint8_t[]>(size_t(bytes)));
    block = owned.back().get();
    fill(block, 0, bytes, dtype);
  }
  for (const TensorSpec& spec : specs) {
    const int64_t bytes = bytes_of(spec), cols = spec.shape.back();
    const int64_t start = kStart * next++;
    uint8_t* data;
    if (shared && spec.shape.size() > 1) {
      data = block + start;
    } else {
      owned.push_back(std::make_unique_for_overwrite<uint8_t[]>(size_t(bytes)));
      data = owned.back().get();
      if (spec.shape.size() > 1) {
        fill(data, start, bytes, dtype);
      } else {
        const uint32_t one = bits_of(1.0f, dtype);
        for (int64_t i = 0; i < bytes; i += dtype_size(dtype)) std::memcpy(data + i, &one, size_t(dtype_size(dtype)));
      }
    }
    for (const WeightPiece& piece : spec.pieces) {
      WeightView view{data, dtype, piece.rows, cols};
      view.data = view.row(piece.row_begin);
      *piece.target = view;
    }
  }
  return owned;
}

}  // namespace lynx_rt
