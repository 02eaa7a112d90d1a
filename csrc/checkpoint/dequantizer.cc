#include "checkpoint/dequantizer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "checkpoint/tensor_values.h"

namespace lynx_rt {

namespace {

// E4M3: a sign bit, 4 exponent bits with bias 7, 3 mantissa bits; no infinities (arXiv 2209.05433).
float float8_e4m3(uint32_t code) {
  const int exponent = int(code >> 3 & 15), mantissa = int(code & 7);
  float v = exponent == 0 ? std::ldexp(float(mantissa), -9) : std::ldexp(float(8 + mantissa), exponent - 10);
  if ((code & 0x7f) == 0x7f) v = std::numeric_limits<float>::quiet_NaN();
  return code & 0x80 ? -v : v;
}

// E2M1: a sign bit, 2 exponent bits with bias 1, 1 mantissa bit (OCP Microscaling Formats 1.0).
float float4_e2m1(uint32_t code) {
  constexpr float kValues[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  return code & 8 ? -kValues[code & 7] : kValues[code & 7];
}

float value_of(Encoding encoding, int bits, uint32_t code) {
  switch (encoding) {
    case Encoding::kFloat8: return float8_e4m3(code);
    case Encoding::kInt8: return float(int8_t(code));
    case Encoding::kPackedInt: return float(int(code) - (1 << (bits - 1)));
    case Encoding::kMxfp4Packed:
    case Encoding::kMxfp4Blocks: return float4_e2m1(code);
    case Encoding::kGptq:
    case Encoding::kAwq: return float(code);
  }
  return 0;
}

}  // namespace

// Zero points are packed along the rows.
std::vector<uint8_t> read_zero_codes(const QuantizedTensor& t) {
  const int bits = t.format.bits, per_word = 32 / bits;
  const uint32_t mask = (1u << bits) - 1;
  const int64_t groups = t.grid_cols, rows = t.grid_rows, words = ceil_div(rows, per_word);
  std::vector<uint8_t> codes(size_t(t.matrices * rows * groups));
  for (int64_t m = 0; m < t.matrices; ++m)
    for (int64_t n = 0; n < rows; ++n)
      for (int64_t g = 0; g < groups; ++g) {
        const bool along_groups = t.format.encoding == Encoding::kPackedInt;
        const int64_t word = along_groups ? (m * words + n / per_word) * groups + g : g * words + n / per_word;
        const int64_t field = t.format.encoding == Encoding::kAwq ? kAwqPosition[n % 8] : n % per_word;
        const uint32_t code = load_value<uint32_t>(t.zero->data + word * 4) >> (bits * field) & mask;
        codes[size_t((m * rows + n) * groups + g)] = uint8_t(t.zeros_less_one ? (code + 1) & mask : code);
      }
  return codes;
}

Dequantizer::Dequantizer(const QuantizedTensor& tensor) : t_(tensor) {
  const int bits = t_.format.bits;
  const Encoding encoding = t_.format.encoding;
  for (uint32_t code = 0; code < 1u << bits; ++code) values_.push_back(value_of(encoding, bits, code));
  scale_ = read_scales(*t_.scale);
  if (encoding == Encoding::kGptq || encoding == Encoding::kAwq) {  // [groups, rows]
    const std::vector<float> stored = std::move(scale_);
    scale_.resize(stored.size());
    for (int64_t g = 0; g < t_.grid_cols; ++g)
      for (int64_t n = 0; n < t_.rows; ++n) scale_[size_t(n * t_.grid_cols + g)] = stored[size_t(g * t_.rows + n)];
  }
  if (t_.zero) read_zeros();
  if (t_.group_index)
    for (const int64_t g : read_integers(*t_.group_index)) group_index_.push_back(int32_t(g));
}

void Dequantizer::read_zeros() {
  if (t_.format.encoding == Encoding::kInt8) {
    for (int64_t i = 0; i < t_.zero->bytes; ++i) zero_.push_back(float(int8_t(t_.zero->data[i])));
    return;
  }
  for (const uint8_t code : read_zero_codes(t_)) zero_.push_back(values_[code]);
}

void Dequantizer::decode_codes(int64_t row, float* out) const {
  const int bits = t_.format.bits;
  const uint8_t* data = t_.codes->data;
  const int64_t k = t_.cols;
  if (t_.format.encoding == Encoding::kGptq) {  // a word holds consecutive k of one column
    const int64_t per_word = 32 / bits;
    const uint32_t mask = (1u << bits) - 1;
    for (int64_t i = 0; i < k; i += per_word) {
      const uint32_t word = load_value<uint32_t>(data + (i / per_word * t_.rows + row) * 4);
      for (int64_t j = 0; j < std::min(per_word, k - i); ++j) out[i + j] = values_[word >> (bits * j) & mask];
    }
  } else if (t_.format.encoding == Encoding::kAwq) {
    const int64_t words = ceil_div(t_.rows, int64_t(8));
    const int shift = 4 * kAwqPosition[row % 8];
    for (int64_t i = 0; i < k; ++i) out[i] = values_[load_value<uint32_t>(data + (i * words + row / 8) * 4) >> shift & 15];
  } else if (bits == 8) {
    data += row * (t_.codes->bytes / (t_.matrices * t_.rows));
    for (int64_t i = 0; i < k; ++i) out[i] = values_[data[i]];
  } else {
    data += row * (t_.codes->bytes / (t_.matrices * t_.rows));
    for (int64_t i = 0; i + 1 < k; i += 2) {
      out[i] = values_[data[i / 2] & 15];
      out[i + 1] = values_[data[i / 2] >> 4];
    }
    if (k % 2) out[k - 1] = values_[data[k / 2] & 15];
  }
}

void Dequantizer::decode(int64_t row, float* out) const {
  decode_codes(row, out);
  const QuantizedFormat& f = t_.format;
  const int64_t matrix = row / t_.rows, scale_row = f.block_rows ? row % t_.rows / f.block_rows : 0;
  const size_t at = size_t((matrix * t_.grid_rows + scale_row) * t_.grid_cols);
  const float* scale = scale_.data() + at;
  const float* zero = zero_.empty() ? nullptr : zero_.data() + at;
  if (!group_index_.empty()) {
    for (int64_t i = 0; i < t_.cols; ++i) {
      const int32_t g = group_index_[size_t(i)];
      out[i] = (out[i] - (zero ? zero[g] : 0)) * scale[g];
    }
    return;
  }
  const int64_t block = f.block_cols ? f.block_cols : t_.cols;
  for (int64_t begin = 0, g = 0; begin < t_.cols; begin += block, ++g) {
    const float s = scale[g], z = zero ? zero[g] : 0;
    const int64_t end = std::min(begin + block, t_.cols);
    for (int64_t i = begin; i < end; ++i) out[i] = (out[i] - z) * s;
  }
}

}  // namespace lynx_rt
