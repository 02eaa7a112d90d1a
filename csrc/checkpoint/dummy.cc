#include "checkpoint/dummy.h"

#include <algorithm>
#include <cstring>

#include "checkpoint/weight_pieces.h"

namespace lynx_rt {

namespace {

constexpr int64_t kStart = 64;  // bytes between the starts of tensors that share a block

uint32_t bits_of(float v, DType dtype) {
  if (dtype == DType::kBF16) return f32_to_bf16(v);
  if (dtype == DType::kF16) return f32_to_f16(v);
  return std::bit_cast<uint32_t>(v);
}

// Writes bytes [start, start + bytes) of an endless sequence of values.
void fill(uint8_t* to, int64_t start, int64_t bytes, DType dtype) {
  // A few values are repeated, because drawing each one anew would take a minute for a large model. Their number is prime, so
  // that no two rows of a usual length are alike.
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
  // Allocates memory and fills it with the values of a tensor at `start`.
  const auto make = [&](int64_t start, int64_t bytes, DType type, bool vector) {
    uint8_t* data = owned.emplace_back(own_pages(bytes)).get();
    if (!vector) {
      fill(data, start, bytes, type);
      return data;
    }
    const uint32_t one = bits_of(1.0f, type);
    for (int64_t i = 0; i < bytes; i += dtype_size(type)) std::memcpy(data + i, &one, size_t(dtype_size(type)));
    return data;
  };
  int64_t largest = 0;
  for (const TensorSpec& spec : specs)
    if (spec.shape.size() > 1) largest = std::max(largest, bytes_of(spec));
  const uint8_t* block = nullptr;
  if (shared) block = make(0, largest + int64_t(specs.size()) * kStart, dtype, false);
  int64_t start = 0;
  for (const TensorSpec& spec : specs) {
    const bool vector = spec.shape.size() < 2;
    const int64_t bytes = bytes_of(spec);
    const uint8_t* next = shared && !vector ? block + start : make(start, bytes, dtype, vector);
    // The pieces follow one another here, however they would lie in a file.
    for (const WeightPiece& piece : checked_pieces(spec)) {
      WeightView view = target_view(piece, dtype);
      if (view.dtype == dtype) {
        view.data = next;
        next += view.bytes();
      } else {
        view.data = make(start, view.bytes(), view.dtype, vector);
      }
      *piece.target = view;
    }
    start += kStart;
  }
  return owned;
}

}  // namespace lynx_rt
