// How the matrices of an expert lie in its record: one stretch of memory, which products read as it is.
#pragma once
#include <array>
#include <cstdint>

#include "base/expert_weights.h"

namespace lynx_rt {

// A record holds the parts of gate, up, down and the biases, in this order, each from a multiple of 64 bytes on: the values, then the
// scales and zeros of grouped codes. Rows have no gaps between them. Its length is a multiple of 4096, the rest is zero. A matrix that
// an expert lacks (biases) has no rows.
class RecordLayout {
 public:
  static constexpr int64_t kAlignment = 4096;  // of records in a file and of their lengths

  RecordLayout() = default;
  // Throws kUnsupported for a format that has no layout in a file.
  explicit RecordLayout(const ExpertWeights& expert);

  int64_t bytes() const { return bytes_; }
  // Writes the whole record.
  void write(const ExpertWeights& expert, uint8_t* record) const;
  // Returns the expert whose record that is; valid as long as the memory.
  ExpertWeights view(const uint8_t* record) const;
  // Returns the views without data. Scales and zeros that are there point to kPresent.
  const ExpertWeights& shape() const { return shape_; }
  static const uint8_t kPresent;

  // Places of the parts of a view, from the begin of the record on; -1 = no such part.
  struct Place {
    int64_t values = -1, scales = -1, zeros = -1;
  };

 private:
  ExpertWeights shape_;
  std::array<Place, ExpertWeights::kNumViews> places_;
  int64_t bytes_ = 0;
};

}  // namespace lynx_rt
