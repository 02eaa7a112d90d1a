// Reads and writes values of tensors at any alignment, since a file aligns none.
#pragma once
#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>
#include <vector>

#include "base/types.h"
#include "checkpoint/safetensors.h"

namespace lynx_rt {

template <class T>
T load_value(const uint8_t* from) {
  T v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

std::optional<DType> floating_dtype(std::string_view name);  // F32, BF16, F16
std::vector<float> read_scales(const TensorInfo& info);      // a floating dtype, or E8M0: one byte, 2^(byte - 127), 255 is NaN
std::vector<int64_t> read_integers(const TensorInfo& info);  // I64, I32

void load_floats(const uint8_t* from, DType dtype, int64_t count, float* to);
void load_doubles(const uint8_t* from, int64_t count, float* to);
void store_floats(const float* from, int64_t count, DType dtype, uint8_t* to);
void round_floats(float* values, int64_t count, DType dtype);  // to the nearest values of the dtype

}  // namespace lynx_rt
