#include "checkpoint/tensor_values.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace lynx_rt {

namespace {

float float8_e8m0(uint8_t code) {
  return code == 255 ? std::numeric_limits<float>::quiet_NaN() : std::ldexp(1.0f, int(code) - 127);
}

}  // namespace

std::optional<DType> floating_dtype(std::string_view name) {
  if (name == "F32") return DType::kF32;
  if (name == "BF16") return DType::kBF16;
  if (name == "F16") return DType::kF16;
  return std::nullopt;
}

std::vector<float> read_scales(const TensorInfo& info) {
  const std::optional<DType> dtype = floating_dtype(info.dtype);
  std::vector<float> out(size_t(dtype ? info.bytes / dtype_size(*dtype) : info.bytes));
  if (dtype) {
    load_floats(info.data, *dtype, int64_t(out.size()), out.data());
  } else {
    std::transform(info.data, info.data + info.bytes, out.begin(), float8_e8m0);
  }
  return out;
}

std::vector<int64_t> read_integers(const TensorInfo& info) {
  const int64_t size = info.dtype == "I64" ? 8 : 4;
  std::vector<int64_t> out;
  for (int64_t i = 0; i < info.bytes; i += size)
    out.push_back(size == 8 ? load_value<int64_t>(info.data + i) : load_value<int32_t>(info.data + i));
  return out;
}

void load_floats(const uint8_t* from, DType dtype, int64_t count, float* to) {
  if (dtype == DType::kF32) {
    std::memcpy(to, from, size_t(count * 4));
  } else if (dtype == DType::kBF16) {
    for (int64_t i = 0; i < count; ++i) to[i] = bf16_to_f32(load_value<uint16_t>(from + i * 2));
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = f16_to_f32(load_value<uint16_t>(from + i * 2));
  }
}

void load_doubles(const uint8_t* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = float(load_value<double>(from + i * int64_t(sizeof(double))));
}

void store_floats(const float* from, int64_t count, DType dtype, uint8_t* to) {
  if (dtype == DType::kF32) {
    std::memcpy(to, from, size_t(count * 4));
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t v = dtype == DType::kBF16 ? f32_to_bf16(from[i]) : f32_to_f16(from[i]);
    std::memcpy(to + i * 2, &v, sizeof v);
  }
}

void round_floats(float* values, int64_t count, DType dtype) {
  if (dtype == DType::kF32) return;
  for (int64_t i = 0; i < count; ++i)
    values[i] = dtype == DType::kBF16 ? bf16_to_f32(f32_to_bf16(values[i])) : f16_to_f32(f32_to_f16(values[i]));
}

}  // namespace lynx_rt
