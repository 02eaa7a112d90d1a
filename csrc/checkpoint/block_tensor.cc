#include "checkpoint/block_tensor.h"

#include <algorithm>
#include <cstring>

#include "base/types.h"
#include "checkpoint/dequantizer.h"
#include "checkpoint/tensor_values.h"

namespace lynx_rt {

namespace {

constexpr int64_t kColumns = 32;    // of a block of grouped codes
constexpr int64_t kAlignment = 64;  // of the parts of a repacked weight

int64_t group_columns(const QuantizedTensor& t) { return t.format.block_cols ? std::min(t.format.block_cols, t.cols) : t.cols; }
int64_t groups(const QuantizedTensor& t) { return ceil_div(t.cols, group_columns(t)); }

bool is_mxfp4(const QuantizedTensor& t) {
  return t.format.encoding == Encoding::kMxfp4Blocks || t.format.encoding == Encoding::kMxfp4Packed;
}

// Whether the target of a piece is whole rows of one matrix, in columns and groups that products take.
bool fits(const QuantizedTensor& t, const WeightPiece& p) {
  if (p.transposed || p.col_begin != 0 || p.cols != t.cols || p.rows == 0) return false;
  const bool any_columns = t.format.encoding == Encoding::kFloat8;
  if (!any_columns && (t.cols % kColumns != 0 || group_columns(t) % kColumns != 0)) return false;
  return p.row_begin / t.rows == (p.row_begin + (p.rows - 1) * p.row_step) / t.rows;
}

// The code of a weight that products read where it lies; nullopt for another.
std::optional<BlockCode> code_in_place(const QuantizedTensor& t) {
  if (is_mxfp4(t)) return BlockCode::kGroupedMxfp4;
  if (t.format.encoding == Encoding::kInt8) return BlockCode::kGroupedInt8;
  if (t.format.encoding == Encoding::kFloat8) return BlockCode::kGroupedFp8;
  if (t.format.encoding == Encoding::kPackedInt && t.format.bits == 4) return BlockCode::kGroupedInt4;
  return std::nullopt;
}

ScaleType scale_type(const QuantizedTensor& t) {
  const std::optional<DType> dtype = floating_dtype(t.scale->dtype);
  if (!dtype) return ScaleType::kExponent;
  return *dtype == DType::kF32 ? ScaleType::kF32 : *dtype == DType::kBF16 ? ScaleType::kBF16 : ScaleType::kF16;
}

// Whether the groups of a row follow one another, although the file may list them.
bool in_order(const QuantizedTensor& t) {
  if (!t.group_index) return true;
  const std::vector<int64_t> index = read_integers(*t.group_index);
  for (size_t i = 0; i < index.size(); ++i)
    if (index[i] != int64_t(i) / group_columns(t)) return false;
  return true;
}

constexpr int64_t kLineWords = 16;
using WordLine = uint32_t[kLineWords];

// A step of the transposition of 8 x 8 fields of 4 bits: exchanges those of lines i and i + Distance whose numbers differ in one bit.
template <int Distance, uint32_t kMask>
void swap_fields(WordLine (&f)[8]) {
  for (int i = 0; i < 8; ++i) {
    if (i & Distance) continue;
    for (int64_t w = 0; w < kLineWords; ++w) {
      const uint32_t changed = (f[i][w] >> (4 * Distance) ^ f[i + Distance][w]) & kMask;
      f[i + Distance][w] ^= changed;
      f[i][w] ^= changed << (4 * Distance);
    }
  }
}

}  // namespace

std::optional<BlockRows> blocks_in_place(const QuantizedTensor& t, const WeightPiece& p) {
  const std::optional<BlockCode> code = code_in_place(t);
  if (!code || t.zero || !fits(t, p) || !in_order(t)) return std::nullopt;
  BlockRows r;
  r.code = *code;
  r.group = group_columns(t);
  r.scale_type = scale_type(t);
  r.product_dtype = t.product_dtype;
  const BlockSize size = block_size(r.code);
  const int64_t code_bytes = t.cols / size.columns * size.bytes;
  r.data = t.codes->data + p.row_begin * code_bytes;
  r.row_bytes = p.row_step * code_bytes;
  // The grid of scales may be larger than the weight needs.
  const int64_t row_scales = t.grid_cols * scale_size(r.scale_type), block_rows = t.format.block_rows;
  const int64_t row = p.row_begin % t.rows;
  const int64_t scale_row = p.row_begin / t.rows * t.grid_rows + (block_rows ? row / block_rows : 0);
  r.scales = t.scale->data + scale_row * row_scales;
  if (block_rows == 0) return r;
  if (block_rows == 1) {
    r.scale_row_bytes = p.row_step * row_scales;
    return r;
  }
  if (block_rows % p.row_step != 0) return std::nullopt;
  r.scale_row_bytes = row_scales;
  r.scale_rows = block_rows / p.row_step;
  r.first_scale_row = row % block_rows / p.row_step;
  return r;
}

bool Repacker::repacks(const QuantizedTensor& t, const WeightPiece& p) {
  const QuantizedFormat& f = t.format;
  const bool known = f.encoding == Encoding::kPackedInt || f.encoding == Encoding::kGptq || f.encoding == Encoding::kAwq;
  if (!known || f.block_rows != 1 || !fits(t, p) || !in_order(t)) return false;
  if (f.bits == 4 || !t.zero) return true;
  const std::vector<uint8_t> zeros = read_zero_codes(t);
  return std::all_of(zeros.begin(), zeros.end(), [](uint8_t z) { return z == 128; });
}

BlockRows Repacker::result(const QuantizedTensor& t, int64_t rows, uint8_t* memory) {
  BlockRows r;
  r.code = t.format.bits == 4 ? BlockCode::kGroupedInt4 : BlockCode::kGroupedInt8;
  r.group = group_columns(t);
  r.scale_type = scale_type(t);
  r.row_bytes = t.cols / kColumns * block_size(r.code).bytes;
  r.scale_row_bytes = groups(t) * scale_size(r.scale_type);
  r.product_dtype = t.product_dtype;
  const bool zeros = t.zero && t.format.bits == 4;
  if (zeros) r.zero_row_bytes = groups(t);
  if (!memory) return r;
  r.data = memory;
  r.scales = memory + round_up(rows * r.row_bytes, kAlignment);
  if (!zeros) return r;
  r.zeros = memory + round_up(rows * r.row_bytes, kAlignment) + round_up(rows * r.scale_row_bytes, kAlignment);
  return r;
}

int64_t Repacker::bytes(const QuantizedTensor& t, int64_t rows) {
  const BlockRows r = result(t, rows, nullptr);
  return round_up(rows * r.row_bytes, kAlignment) + round_up(rows * r.scale_row_bytes, kAlignment) +
         round_up(rows * r.zero_row_bytes, kAlignment);
}

Repacker::Repacker(const QuantizedTensor& tensor) : t_(tensor) {
  if (t_.zero && t_.format.bits == 4) zeros_ = read_zero_codes(t_);
}

// Eight rows share a word of a column: eight columns' words, which are 8 x 8 fields of 4 bits, are transposed at once, a cache line of
// them beside each other.
void Repacker::repack_awq(int64_t row, int64_t count, uint8_t* codes, int64_t row_bytes) const {
  const int64_t row_words = t_.rows / 8, end = ceil_div(row + count, 8);
  for (int64_t first = row / 8; first < end; first += kLineWords) {
    const int64_t words = std::min(kLineWords, end - first);
    const uint8_t* from = t_.codes->data + first * 4;
    for (int64_t k = 0; k < t_.cols; k += 8) {
      WordLine f[8] = {};
      for (int64_t i = 0; i < 8; ++i) {
        const uint8_t* line = from + (k + i) * row_words * 4;
        if (words == kLineWords)
          std::memcpy(f[i], line, sizeof f[i]);  // a size that the compiler knows, which is several times as fast
        else
          std::memcpy(f[i], line, size_t(4 * words));
      }
      swap_fields<4, 0x0000ffffu>(f);
      swap_fields<2, 0x00ff00ffu>(f);
      swap_fields<1, 0x0f0f0f0fu>(f);
      for (int64_t w = 0; w < words; ++w)
        for (int64_t i = 0; i < 8; ++i) {
          const int64_t n = (first + w) * 8 + i - row;
          if (n >= 0 && n < count) std::memcpy(codes + n * row_bytes + k / 2, &f[kAwqPosition[i]][w], 4);
        }
    }
  }
}

void Repacker::repack(const WeightPiece& p, int64_t begin, int64_t count, uint8_t* memory) const {
  const BlockRows to = result(t_, p.rows, memory);
  uint8_t* codes = static_cast<uint8_t*>(const_cast<void*>(to.data)) + begin * to.row_bytes;
  uint8_t* scales = static_cast<uint8_t*>(const_cast<void*>(to.scales)) + begin * to.scale_row_bytes;
  uint8_t* zeros = static_cast<uint8_t*>(const_cast<void*>(to.zeros)) + begin * to.zero_row_bytes;
  const int64_t num_groups = groups(t_), size = scale_size(to.scale_type), words = to.row_bytes / 4;
  const auto row_at = [&](int64_t i) { return p.row_begin + (begin + i) * p.row_step; };
  const bool transposed = t_.format.encoding != Encoding::kPackedInt;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t g = 0; g < num_groups; ++g) {
      const int64_t row = row_at(i), from = transposed ? g * t_.rows + row : row * num_groups + g;
      std::memcpy(scales + i * to.scale_row_bytes + g * size, t_.scale->data + from * size, size_t(size));
      if (to.zeros) zeros[i * to.zero_row_bytes + g] = zeros_[size_t(row * num_groups + g)];
    }
  if (t_.format.encoding == Encoding::kPackedInt) {
    for (int64_t i = 0; i < count; ++i)
      std::memcpy(codes + i * to.row_bytes, t_.codes->data + row_at(i) * to.row_bytes, size_t(to.row_bytes));
  } else if (t_.format.encoding == Encoding::kGptq) {  // a word holds consecutive columns of one row, as the result does
    for (int64_t w = 0; w < words; ++w)
      for (int64_t i = 0; i < count; ++i)
        std::memcpy(codes + i * to.row_bytes + w * 4, t_.codes->data + (w * t_.rows + row_at(i)) * 4, 4);
  } else {
    repack_awq(row_at(0), count, codes, to.row_bytes);
  }
  if (t_.format.bits == 8)  // codes with an offset of 128 become signed
    for (int64_t i = 0; i < count * to.row_bytes; ++i) codes[i] ^= 0x80;
}

}  // namespace lynx_rt
